#!/usr/bin/env python3
"""scripts/sanitize-gpu with programs and a compute-sanitizer made up here: what is clean, and what is not."""
import os
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'scripts/sanitize-gpu'
CLEAN = 'echo "========= ERROR SUMMARY: 0 errors"'


class SanitizeGpu(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.build = pathlib.Path(self.scratch.name) / 'build'
        self.put('build/tests/test_ops', 'echo "[  PASSED  ] 7 tests."')
        self.put('build/bin/mamba3', """echo '{"finish_reason": "length"}'""")
        self.put('path/nvidia-smi', 'echo "GPU 0"')

    def tearDown(self):
        self.scratch.cleanup()

    def put(self, name, body):
        path = pathlib.Path(self.scratch.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#!/bin/bash\n' + body + '\n')
        path.chmod(0o755)

    # `behind` runs after the program, as a tool's summary comes.
    def sanitize(self, behind, *tools):
        self.put('path/compute-sanitizer', 'while [[ $1 == --* ]]; do shift 2; done\n"$@"\n' + behind)
        path = str(pathlib.Path(self.scratch.name) / 'path')
        environment = {**os.environ, 'PATH': path + ':' + os.environ['PATH'], 'MAMBA3_BUILD': str(self.build), 'MAMBA3_SANITIZE_SECONDS': '5'}
        return subprocess.run([SCRIPT, *tools], capture_output=True, text=True, env=environment)

    def test_clean(self):
        done = self.sanitize(CLEAN)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        names = ('scan', 'mma', 'general', 'backward', 'ring', 'others', 'training', 'sampling', 'products', 'tiles', 'generate')
        expected = [[tool, name] for tool in ('memcheck', 'racecheck', 'initcheck', 'synccheck') for name in names
                    if tool != 'initcheck' or name not in ('products', 'generate')]
        self.assertEqual([line.split()[:2] for line in done.stdout.splitlines()], expected)
        self.assertEqual(done.stdout.count('clean'), len(expected))

    def test_a_hazard_fails(self):
        done = self.sanitize('echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors)"', 'racecheck')
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.count('FAILED'), 11)
        self.assertIn('2 hazards', done.stdout)
        self.assertEqual(self.sanitize(CLEAN + '; exit 9', 'memcheck').returncode, 1)

    def test_nothing_tested_fails(self):
        self.put('build/tests/test_ops', 'echo "[  PASSED  ] 0 tests."')
        done = self.sanitize(CLEAN, 'memcheck')
        self.assertEqual(done.returncode, 1)
        self.assertIn('nothing was tested', done.stdout)

    def test_no_end_fails(self):
        self.put('build/bin/mamba3', 'sleep 30')
        done = self.sanitize(CLEAN, 'memcheck')
        self.assertEqual(done.returncode, 1)
        self.assertIn('not finished in 5 s', done.stdout)

    def test_without_a_gpu_it_is_skipped(self):
        self.put('path/nvidia-smi', 'exit 9')
        done = self.sanitize(CLEAN)
        self.assertEqual(done.returncode, 0)
        self.assertIn('skipped', done.stdout)


if __name__ == '__main__':
    unittest.main()
