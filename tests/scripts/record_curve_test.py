#!/usr/bin/env python3
"""scripts/record-curve on a training made up here: which rows it keeps of it, and where they come from."""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'scripts/record-curve'


class RecordCurve(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / 'scripts').mkdir()
        (self.root / 'bench/results').mkdir(parents=True)
        self.script = shutil.copy(SCRIPT, self.root / 'scripts')  # it writes beside itself
        self.run_folder = self.root / 'tiny'
        self.run_folder.mkdir()

    def record(self, *options):
        return subprocess.run([sys.executable, self.script, 'curves', self.run_folder, '--device', 'a card', *options],
                              capture_output=True, text=True)

    def test_losses_are_means_and_the_last_evaluation_has_the_baseline(self):
        lines = []
        for step in range(1, 301):
            lines.append({'step': step, 'loss': step / 100, 'tokens': 10, 'seconds': 0.5})
            if step in (150, 300):
                lines.append({'step': step, 'held_out': 1 + step / 100})
        (self.run_folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n', encoding='utf8')
        (self.run_folder / 'run.yaml').write_text('# mamba3 0.1.0 abc123: mamba3 train -o tiny\n# Again\nsteps: 300\n', encoding='utf8')
        done = self.record('--baseline', 'tiny=8', '--driver', '1.2')
        self.assertEqual(done.returncode, 0, done.stderr)
        document = json.loads((self.root / 'bench/results/curves.json').read_text(encoding='utf8'))
        self.assertEqual([document[key] for key in ('command', 'commit', 'device', 'driver')],
                         ['mamba3 train -o tiny', 'abc123', 'a card', '1.2'])
        values = {row['name']: (row['value'], row['baseline'], row['ratio']) for row in document['rows']}
        self.assertAlmostEqual(values.pop('curve/tiny/loss/step=250')[0], 2.255)  # of steps 201 to 250
        self.assertEqual(values, {'curve/tiny/held-out/step=150': (2.5, None, None),
                                  'curve/tiny/held-out/step=300': (4.0, 8.0, 2.0), 'curve/tiny/speed': (20.0, None, None)})

    def test_a_folder_of_something_else_is_refused(self):
        (self.run_folder / 'metrics.jsonl').write_text('', encoding='utf8')
        (self.run_folder / 'run.yaml').write_text('steps: 300\n', encoding='utf8')
        done = self.record()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn('tiny/run.yaml', done.stderr)


if __name__ == '__main__':
    unittest.main()
