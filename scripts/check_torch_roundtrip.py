#!/usr/bin/env python3
"""Checks against PyTorch that the files which `mamba3 convert` writes say what the original says (needs torch, safetensors).

    scripts/check_torch_roundtrip.py [--mamba3 build/cpu/bin/mamba3] MODEL_FOLDER...

Each folder is converted to both formats. The .bin is read by torch.load(weights_only=True), into memory and mapped, the
safetensors by safetensors.torch; every tensor must equal the original's, bit for bit, and tied weights must share memory.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import safetensors.torch
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load(folder):
    """The tensors in a folder, by whichever of the two file kinds it has."""
    shards = sorted(folder.glob('model*.safetensors'))
    if not shards:
        return torch.load(folder / 'pytorch_model.bin', map_location='cpu', weights_only=True)
    tensors = {}
    for shard in shards:
        tensors.update(safetensors.torch.load_file(shard))
    return tensors


def differences(expected, found, tied_may_lack=False):
    out = []
    for name in expected.keys() | found.keys():
        if name not in found and tied_may_lack and name == 'lm_head.weight':
            continue
        if name not in found or name not in expected:
            out.append(f'{name}: only in one of the two')
        elif expected[name].dtype != found[name].dtype or expected[name].shape != found[name].shape:
            out.append(f'{name}: {expected[name].dtype} {list(expected[name].shape)} became '
                       f'{found[name].dtype} {list(found[name].shape)}')
        elif not torch.equal(expected[name].contiguous().view(torch.uint8), found[name].contiguous().view(torch.uint8)):
            out.append(f'{name}: other values')
    return out


def shares_memory(tensors):
    names = ('backbone.embedding.weight', 'lm_head.weight')
    return all(name in tensors for name in names) and len({tensors[name].data_ptr() for name in names}) == 1


def check(mamba3, folder, scratch):
    def convert(name, *options):
        subprocess.run([mamba3, 'convert', '-q', '-m', folder, '-o', scratch / name, *options], check=True,
                       stdout=subprocess.DEVNULL)
        return scratch / name

    original = load(folder)
    tied = shares_memory(original)
    as_bin = convert('bin', '--format', 'bin')
    bad = []
    for mapped in (False, True):
        loaded = torch.load(as_bin / 'pytorch_model.bin', weights_only=True, mmap=mapped)
        bad += differences(original, loaded)
        if tied and not shares_memory(loaded):
            bad.append('lm_head.weight no longer shares memory with the embedding')
    one = convert('safetensors', '--format', 'safetensors')
    bad += differences(original, load(one), tied)
    shards = convert('shards', '--format', 'safetensors', '--shard-bytes', str(1 << 20))
    bad += differences(original, load(shards), tied)
    print(f'{folder}: {len(original)} tensors, {len(bad)} differences')
    for line in bad[:20]:
        print('  ' + line)
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mamba3', default=ROOT / 'build' / 'cpu' / 'bin' / 'mamba3', type=pathlib.Path)
    parser.add_argument('folders', nargs='+', type=pathlib.Path)
    arguments = parser.parse_args()
    bad = []
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as scratch:
            bad += check(arguments.mamba3, folder, pathlib.Path(scratch))
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
