#!/usr/bin/env python3
"""scripts/check-models on a made-up model and a program that answers what it is told to: what passes, what fails, what is skipped."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'scripts/check-models'
# Answers by the command: 'generate', 'requests', 'text', 'task'.
STUB = '''#!{python}
import json, sys
answers = json.load(open({answers!r}))
words = sys.argv[1:]
key = 'generate' if words[0] == 'generate' else next(w[2:] for w in words if w in ('--requests', '--text', '--task'))
print(answers[key])
'''
GOLDEN = {
    'greedy': [{'prompt': 'a', 'prompt_tokens': 1, 'ids': [0, 5, 6, 7], 'margins': [1.0, 0.05, 0.5]}],
    'logprobs': [{'ids': [0, 1, 2], 'logprobs': [-1.0, -2.0]}],
    'validation': {'blocks': 512, 'nats_per_token': 4.0, 'first_32_block_losses': [3.0, 3.5]},
}
EXPECTED = {'models': {'siso-24m': {'quiz': {'items': 1000, 'acc': 0.5, 'perplexity': 10.0}}}}
ANSWERS = {
    'generate': {'prompt_ids': [0], 'samples': [{'ids': [5, 6, 7]}]},
    'requests': {'token_logprobs': [-1.01, -2.0]},
    'text': {'nats_per_token': 3.2505},
    'task': {'items': 1000, 'acc': 0.504, 'perplexity': 10.05},
}


class CheckModels(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.data = pathlib.Path(self.scratch.name) / 'data'
        model = self.data / 'models' / 'siso-24m'
        for folder in (model, self.data / 'eval', self.data / 'corpus'):
            folder.mkdir(parents=True)
        (model / 'config.json').write_text('{}')
        (model / 'pytorch_model.bin').write_text('')
        (model / 'golden_fp64.json').write_text(json.dumps(GOLDEN))
        (self.data / 'eval' / 'expected.json').write_text(json.dumps(EXPECTED))
        (self.data / 'eval' / 'quiz.jsonl').write_text('')
        (self.data / 'corpus' / 'valid.txt').write_text('text')

    def tearDown(self):
        self.scratch.cleanup()

    def check(self, *arguments, data=None, **changes):
        answers = pathlib.Path(self.scratch.name) / 'answers.json'
        answers.write_text(json.dumps({key: json.dumps(value) for key, value in {**ANSWERS, **changes}.items()}))
        program = pathlib.Path(self.scratch.name) / 'mamba3'
        program.write_text(STUB.format(python=sys.executable, answers=str(answers)))
        program.chmod(0o755)
        command = [sys.executable, str(SCRIPT), 'siso-24m', '--data', str(data or self.data), '--program', str(program), '--blocks', '2']
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    def expect_failure(self, said, *arguments, **changes):
        done = self.check(*arguments, **changes)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        failed = [line for line in done.stdout.splitlines() if line.startswith('FAILED')]
        self.assertEqual(len(failed), 1, done.stdout)
        self.assertIn(said, failed[0])

    def test_all_holds(self):
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for text in ('4 of 4 checks hold', 'mean 5.00e-03', "the authors' in bf16: 0.112, 0.013", '+5.0e-04', 'acc 0.5040, +4 items'):
            self.assertIn(text, done.stdout)

    def test_the_authors_errors_are_computed_where_their_results_are(self):
        theirs = {'logprobs': [{'ids': [0, 1, 2], 'logprobs_bf16_package': [-1.25, -2.0]}]}
        (self.data / 'models' / 'siso-24m' / 'golden.json').write_text(json.dumps(theirs))
        self.assertIn("the authors' in bf16: 0.250, 0.1250", self.check().stdout)

    def test_each_limit_fails(self):
        generated = [{'ids': [5, 6, 8]}]
        self.expect_failure('token 2 after', generate={'prompt_ids': [0], 'samples': generated})
        self.expect_failure('other ids', generate={'prompt_ids': [1], 'samples': ANSWERS['generate']['samples']})
        self.expect_failure('largest error 2.00e-01', requests={'token_logprobs': [-1.0, -2.2]})
        self.expect_failure('mean 1.50e-02', requests={'token_logprobs': [-1.03, -2.0]})
        self.expect_failure('loss over 2 blocks', text={'nats_per_token': 3.2512})
        self.expect_failure('acc 0.4940', task={'items': 1000, 'acc': 0.494, 'perplexity': 10.0})
        self.expect_failure('quiz', task={'items': 999, 'acc': 0.5, 'perplexity': 10.0})
        self.expect_failure('perplexity 10.20', task={'items': 1000, 'acc': 0.5, 'perplexity': 10.2})
        self.expect_failure('log-probabilities', '--dtype', 'fp32', '--only', 'logprobs')

    def test_a_difference_at_a_small_margin_is_none(self):
        done = self.check('--only', 'greedy', generate={'prompt_ids': [0], 'samples': [{'ids': [5, 9, 9]}]})
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('1 of 3 tokens', done.stdout)

    def test_what_is_not_there_is_skipped(self):
        done = self.check(data=self.data / 'nothing')
        self.assertEqual(done.returncode, 0)
        self.assertIn('skipped', done.stdout)
        (self.data / 'corpus' / 'valid.txt').unlink()
        (self.data / 'eval' / 'expected.json').unlink()
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(done.stdout.count('skipped'), 2)
        self.assertIn('2 of 2 checks hold', done.stdout)
        (self.data / 'models' / 'siso-24m' / 'pytorch_model.bin').unlink()
        self.assertIn('no checkpoint', self.check().stdout)


if __name__ == '__main__':
    unittest.main()
