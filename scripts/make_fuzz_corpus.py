#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets torch_bin, safetensors and config_json (needs torch, safetensors, numpy).

    scripts/make_fuzz_corpus.py [FOLDER]        default: fuzz/corpus

Seeds named ok_* are read without an error, those named bad_* are refused; tests/io/corpus_test.cpp checks both.
"""
import collections
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import safetensors.torch
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent


def saved(value, **options):
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def state_dict():
    torch.manual_seed(1)
    out = collections.OrderedDict()
    out['backbone.embedding.weight'] = torch.randn(5, 3).to(torch.bfloat16)
    out['float'] = torch.arange(7, dtype=torch.float32) / 4
    out['double'] = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    out['half'] = torch.tensor([0.5], dtype=torch.float16)
    out['long'] = torch.tensor([1 << 40, -3])
    out['int'] = torch.tensor([-7], dtype=torch.int32)
    out['short'] = torch.tensor([300], dtype=torch.int16)
    out['char'] = torch.tensor([-100], dtype=torch.int8)
    out['byte'] = torch.tensor([200], dtype=torch.uint8)
    out['bool'] = torch.tensor([True, False])
    out['scalar'] = torch.tensor(0.25)
    out['empty'] = torch.zeros(0, 4)
    out['lm_head.weight'] = out['backbone.embedding.weight']
    out._metadata = collections.OrderedDict([('', {'version': 1})])
    return out


def strided():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {'base': base, 'transposed': base.t(), 'column': base[:, 2], 'rows': base[1:3], 'expanded': base[0, :1].expand(5),
            'odd': torch.arange(9, dtype=torch.uint8)[1:]}


class Call:
    """Unpickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def archive(entries, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return out.getvalue()


def entries_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def torch_seeds():
    plain = saved(state_dict())
    entries = entries_of(plain)
    folder = next(iter(entries)).split('/')[0]
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in strided().items() if tensor.is_floating_point()}
    small = {'w': torch.ones(2, 2)}
    small_entries = entries_of(saved(small))
    yield 'ok_state_dict', plain
    yield 'ok_protocol5', saved(state_dict(), pickle_protocol=5)
    yield 'ok_strided', saved(strided())
    yield 'ok_parameters', saved(parameters)
    yield 'ok_nested', saved({'state_dict': small, 'epoch': 3, 'loss': 0.5})
    yield 'ok_rezipped', archive(small_entries)
    yield 'bad_old_format', saved(small, _use_new_zipfile_serialization=False)
    yield 'bad_deflated', archive(small_entries, zipfile.ZIP_DEFLATED)
    yield 'bad_truncated', plain[:len(plain) * 2 // 3]
    yield 'bad_no_storage', archive({n: d for n, d in small_entries.items() if not n.endswith('data/0')})
    yield 'bad_big_endian', archive({n: b'big' if n.endswith('byteorder') else d for n, d in small_entries.items()})
    yield 'bad_system', archive({**entries, f'{folder}/data.pkl': pickle.dumps({'w': Call(os.system, 'true')}, 2)})
    yield 'bad_not_a_dictionary', saved(torch.ones(2))
    yield 'bad_not_a_tensor', saved({'w': torch.ones(2), 'note': 'hello'})
    yield 'bad_sparse', saved({'w': torch.eye(2).to_sparse()})


def safetensors_file(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def safetensors_seeds():
    tensors = {name: tensor.clone().contiguous() for name, tensor in state_dict().items()}
    plain = safetensors.torch.save(tensors, metadata={'format': 'pt', 'made by': 'a test'})
    entry = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
    yield 'ok_state_dict', plain
    yield 'ok_misaligned', safetensors_file({'a': {'dtype': 'U8', 'shape': [3], 'data_offsets': [0, 3]},
                                             'b': {'dtype': 'F32', 'shape': [2], 'data_offsets': [3, 11]}}, bytes(11))
    yield 'ok_empty', safetensors_file({})
    yield 'bad_truncated', plain[:-1]
    yield 'bad_header_length', struct.pack('<Q', 1 << 62) + plain[8:]
    yield 'bad_hole', safetensors_file({'a': entry, 'b': {**entry, 'data_offsets': [12, 20]}}, bytes(20))
    yield 'bad_overlap', safetensors_file({'a': entry, 'b': {**entry, 'data_offsets': [4, 12]}}, bytes(12))
    yield 'bad_twice', safetensors_file(b'{"a":%s,"a":%s}' % ((json.dumps(entry).encode(),) * 2), bytes(8))
    yield 'bad_shape', safetensors_file({'a': {**entry, 'shape': [1 << 40, 1 << 40]}}, bytes(8))
    yield 'bad_depth', safetensors_file(b'{"a":' * 1000, bytes(8))
    yield 'bad_dtype', safetensors_file({'a': {**entry, 'dtype': 'F8_E4M3'}}, bytes(8))


def config_seeds():
    full = {'d_model': 32, 'd_intermediate': 96, 'n_layer': 2, 'vocab_size': 97,
            'ssm_cfg': {'layer': 'Mamba3', 'd_state': 16, 'expand': 2, 'headdim': 16, 'ngroups': 1, 'rope_fraction': 0.5,
                        'A_floor': 1e-4, 'is_mimo': True, 'mimo_rank': 4, 'chunk_size': 16, 'is_outproj_norm': True,
                        'a_activation': 'softplus'},
            'attn_layer_idx': [], 'attn_cfg': {}, 'rms_norm': True, 'residual_in_fp32': True, 'fused_add_norm': True,
            'pad_vocab_size_multiple': 16, 'tie_embeddings': False, 'eos_token_id': [1, 2], 'architectures': ['x']}
    ssm = full['ssm_cfg']
    yield 'ok_full', full
    yield 'ok_defaults', {'ssm_cfg': {'layer': 'Mamba3'}}
    yield 'bad_mamba2', {**full, 'ssm_cfg': {'layer': 'Mamba2'}}
    yield 'bad_attention', {**full, 'attn_layer_idx': [1]}
    yield 'bad_type', {**full, 'd_model': '32'}
    yield 'bad_negative', {**full, 'n_layer': -2}
    yield 'bad_huge', {**full, 'vocab_size': 1 << 63}
    yield 'bad_rope', {**full, 'ssm_cfg': {**ssm, 'rope_fraction': 0.3}}
    yield 'bad_groups', {**full, 'ssm_cfg': {**ssm, 'ngroups': 3}}


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'fuzz' / 'corpus'
    configs = [(name, json.dumps(value, indent=1).encode()) for name, value in config_seeds()]
    configs.append(('bad_deep', b'[' * 5000))
    configs.append(('bad_nan', b'{"ssm_cfg": {"layer": "Mamba3", "A_floor": NaN}}'))
    for target, suffix, seeds in [('torch_bin', '.bin', torch_seeds()), ('safetensors', '.safetensors', safetensors_seeds()),
                                  ('config_json', '.json', configs)]:
        folder = root / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            (folder / (name + suffix)).write_bytes(data)


if __name__ == '__main__':
    main()
