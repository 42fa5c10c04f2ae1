#!/usr/bin/env python3
"""scripts/plot-bench on results made up here: what is drawn, that it is the same twice, what is refused."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ET

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'scripts/plot-bench'
RECT, TEXT = ('{http://www.w3.org/2000/svg}' + tag for tag in ('rect', 'text'))


def row(name, value, unit, **more):
    keys = ('bytes', 'flops', 'ceiling', 'share_of_ceiling', 'baseline', 'ratio')
    return {'name': name, 'value': value, 'unit': unit, **{key: more.get(key) for key in keys}}


def document(rows, **more):
    return {'commit': 'abc1234', 'date': '2026-01-02', 'device': 'Imaginary <9000> & more', 'rows': rows, **more}


DECODE = document([
    row('decode/siso-1.5b/bf16/batch=1', 500.0, 'tokens/s', baseline=250.0, ceiling=1000.0),
    row('decode/siso-1.5b/bf16/batch=128', 32000.0, 'tokens/s', baseline=16000.0, ceiling=40000.0),
    row('decode/siso-1.5b/bf16/batch=128/linear', 50.0, '% of time'),
    row('decode/mimo-1.5b/bf16/batch=128', 25600.0, 'tokens/s', ceiling=40000.0),
], baselines='somebody')
TABLE = document([row(f'table7/{model}/tokens={n}/{part}', 1.0, 's', baseline=2.0, ratio=ratio)
                  for model, ratio in (('siso-1.5b', 2.0), ('mimo-1.5b', 1.5))
                  for n in (512, 2048) for part in ('prefill', 'prefill+decode')])
KERNELS = document([row('kernels/siso-1.5b/mamba3_step/batch=128', 190.0, 'us', share_of_ceiling=0.91),
                    row('kernels/siso-1.5b/linear/in_proj/rows=1', 12.0, 'us', share_of_ceiling=0.5),
                    row('kernels/siso-1.5b/mamba3_scan/skew', 1.1, 'x'), row('ceiling/read', 3000.0, 'GB/s')])
PREFILL = document([row('prefill/siso-187m/bf16/tokens=2048', 1800.0, 'tokens/s', ceiling=2300.0),
                    row('prefill/siso-187m/bf16/batch=4/tokens=512', 1700.0, 'tokens/s', ceiling=2300.0)])


STATES = document([row(f'state-tracking/parity/rope={rope}/width=32/rate=0.001/seed={seed}', value + seed, 'scaled accuracy')
                   for rope, value in (('data-dependent', 98.5), ('none', -0.25)) for seed in (0, 1)])

CURVES = document([row(f'curve/siso-24m/loss/step={step}', 5.0 - step / 500, 'nats/token') for step in (250, 500)] +
                  [row('curve/siso-24m/held-out/step=500', 4.125, 'nats/token'),
                   row('curve/siso-24m/held-out/step=600', 3.5, 'nats/token', baseline=3.625),
                   row('curve/siso-24m/speed', 1e6, 'tokens/s')])


class PlotBench(unittest.TestCase):

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)
        (self.path / 'results').mkdir()

    def write(self, **files):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (self.path / 'results' / (name.replace('_', '-') + '.json')).write_text(text, encoding='utf8')

    def run_script(self, *arguments, out='plots'):
        return subprocess.run([sys.executable, SCRIPT, '--results', self.path / 'results', '--out', self.path / out, *arguments],
                              capture_output=True, text=True, check=False)

    def draw(self, out='plots'):
        done = self.run_script(out=out)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {path.name: path.read_bytes() for path in sorted((self.path / out).glob('*'))}

    def texts(self, plot):
        return [element.text for element in ET.fromstring(plot).iter(TEXT)]

    def bars(self, plot, color):
        return [element for element in ET.fromstring(plot).iter(RECT) if element.get('fill') == color and element.get('height') != '10.0']

    def test_a_plot_for_each_kind_and_the_same_bytes_twice(self):
        self.write(gpu_decode=DECODE, gpu_table=TABLE, gpu_kernels=KERNELS, cpu_prefill=PREFILL)
        plots = self.draw()
        self.assertEqual(list(plots), ['cpu-prefill.svg', 'gpu-decode.svg', 'gpu-kernels.svg', 'gpu-table7.svg'])
        self.assertEqual(self.draw('again'), plots)

    def test_state_tracking_shows_the_best_and_every_run(self):
        self.write(state_tracking_parity=STATES)
        plot = self.draw()['state-tracking.svg']
        for value in ('99.5', '0.8', 'Parity'):
            self.assertIn(value, self.texts(plot))
        self.assertEqual(self.texts(plot).count('2'), 2)  # runs of each rotation
        self.assertEqual(plot.count(b'<circle'), 4)

    def test_state_tracking_keeps_kinds_of_models_apart(self):
        rows = [dict(row(f'state-tracking/{task}/rope=none/width=64/rate=0.001/seed=0', value, 'scaled accuracy'), model={'d_intermediate': hidden},
                     steps=steps)
                for task, value, hidden, steps in (('modular-arithmetic', 11, 128, 40000), ('modular-arithmetic/bf16', 12, 128, 40000),
                                                   ('modular-arithmetic/bf16', 13, 0, 40000), ('modular-arithmetic/bf16', 15, 0, 80000),
                                                   ('parity/bf16', 14, 0, 40000))]
        self.write(state_tracking_all=document(rows))
        texts = self.texts(self.draw()['state-tracking.svg'])
        kinds = ('Parity', 'Arithmetic', 'bf16', 'bf16, MLP', 'fp32', 'fp32, MLP', '40,000 steps', '80,000 steps')
        self.assertEqual([text for text in texts if text in kinds],
                         ['Parity', 'bf16', '40,000 steps', 'Arithmetic', 'bf16', '40,000 steps', 'Arithmetic', 'bf16', '80,000 steps',
                          'Arithmetic', 'bf16, MLP', '40,000 steps', 'Arithmetic', 'fp32, MLP', '40,000 steps'])
        for value in ('11.0', '12.0', '13.0', '14.0', '15.0'):
            self.assertIn(value, texts)

    def test_curves_name_both_ends(self):
        self.write(gpu_train_curves_24m=CURVES)
        self.assertIn('siso-24m: 3.500, theirs 3.625', self.texts(self.draw()['gpu-train-curves.svg']))

    def test_training_is_drawn_over_the_authors(self):
        self.write(gpu_train=document([
            row('train/siso-24m/bf16/batch=128/tokens=512', 1.5e6, 'tokens/s', baseline=6e5, ratio=2.5, ceiling=2.4e6),
            row('train/mimo-1.5b/bf16/batch=4/tokens=2048', 3e4, 'tokens/s', baseline=2e4, ratio=1.5, ceiling=6e4),
            row('train/siso-1.5b/bf16/batch=4/tokens=2048/memory', 40, 'GB')], baselines='somebody'))
        plot = self.draw()['gpu-train.svg']
        for words in ('SISO', 'MIMO', '24M', '1.5B', '2.50', '1.50', "the authors' package"):
            self.assertIn(words, self.texts(plot))
        self.assertNotIn('40.0', self.texts(plot))

    def test_decode_is_drawn_in_milliseconds(self):
        self.write(gpu_decode=DECODE)
        plot = self.draw()['gpu-decode.svg']
        texts = self.texts(plot)
        for value in ('2.00', '4.00', '8.00', '5.00'):  # 1/500, 128/32000, 128/16000, 128/25600
            self.assertIn(value, texts)
        self.assertEqual(len(self.bars(plot, '#1769aa')), 2)
        self.assertEqual(len(self.bars(plot, '#0f766e')), 1)
        self.assertEqual(len(self.bars(plot, '#cbd2d9')), 2)
        self.assertIn("the authors' package", texts)
        heights = [float(bar.get('height')) for bar in self.bars(plot, '#1769aa')]
        self.assertAlmostEqual(heights[1] / heights[0], 2, delta=0.01)

    def test_origins_are_named_and_escaped(self):
        self.write(gpu_decode=DECODE)
        self.assertIn('Imaginary <9000> & more, abc1234, 2026-01-02', self.texts(self.draw()['gpu-decode.svg']))

    def test_each_day_is_named_on_a_line_inside_the_picture(self):
        self.write(gpu_one=DECODE, gpu_two={**DECODE, 'date': '2026-01-03'}, gpu_three={**DECODE, 'date': '2026-01-04'})
        root = ET.fromstring(self.draw()['gpu-decode.svg'])
        days = [(text.text, float(text.get('y'))) for text in root.iter(TEXT) if '2026-01-' in text.text]
        self.assertEqual([words[-10:] for words, _ in days], ['2026-01-02', '2026-01-03', '2026-01-04'])
        self.assertTrue(days[0][1] < days[1][1] < days[2][1] < float(root.get('height')))

    def test_kernels_without_a_share_are_left_out(self):
        self.write(gpu_kernels=KERNELS)
        plot = self.draw()['gpu-kernels.svg']
        self.assertEqual(len(self.bars(plot, '#1769aa')), 2)
        self.assertIn('91 %', self.texts(plot))
        self.assertIn('190 µs', self.texts(plot))
        self.assertIn('step batch=128', self.texts(plot))

    def test_table7_has_a_bar_for_each_ratio(self):
        self.write(gpu_table=TABLE)
        plot = self.draw()['gpu-table7.svg']
        self.assertEqual(len(self.bars(plot, '#1769aa')), 4)
        self.assertEqual(len(self.bars(plot, '#0f766e')), 4)
        self.assertEqual(self.texts(plot).count('2.00'), 4)
        self.assertEqual(self.texts(plot).count('1.50'), 4)

    def test_check_says_whether_the_files_are_up_to_date(self):
        self.write(gpu_decode=DECODE)
        missing = self.run_script('--check')
        self.assertEqual(missing.returncode, 1)
        self.assertFalse((self.path / 'plots').exists())
        self.draw()
        self.assertEqual(self.run_script('--check').returncode, 0)
        self.write(gpu_decode={**DECODE, 'commit': 'other'})
        self.assertIn('gpu-decode.svg', self.run_script('--check').stdout)

    def test_no_results_no_plots(self):
        self.assertEqual(self.draw(), {})

    def test_what_is_no_result_is_refused_by_name(self):
        for text in ('', '[]', '{"rows": [{"name": "a"}]}', '{"rows": [3], "device": "d"}', '{"rows": []}'):
            self.write(broken=text)
            done = self.run_script()
            self.assertEqual(done.returncode, 1, text)
            self.assertIn('broken.json', done.stderr)


if __name__ == '__main__':
    unittest.main()
