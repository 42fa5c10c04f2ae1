"""Mamba-3 language model in eager PyTorch, for comparison with the engine in this repository.

Letters of the shape comments, as in docs/SHAPES.md: b batch, t token, d model width, h heads,
p head dimension, n state size, g groups, r rank (1 = SISO), s rotary angles, c token within a
chunk, k chunk of a block, v vocabulary.

Prefill uses the merged chunked form. With cs the running sum of a*dt inside a chunk and
weight_j = gamma_j + (1 - lam_{j+1}) dt_{j+1}, both terms of the trapezoid that token j ever
contributes are paid at once, so a chunk is two masked products with its own keys and one product
with the state that entered it. Rows of a chunk are ordered rank-major (r, c): the [c, c] decay then
broadcasts over ranks with a contiguous inner dimension.
"""

import dataclasses
import json
import math
import pathlib

import torch
import torch.nn.functional as F

NORM_EPSILON = 1e-5
TWO_PI = 2.0 * math.pi


@dataclasses.dataclass
class Config:
    d_model: int = 2560
    n_layer: int = 64
    vocab_size: int = 50277
    d_state: int = 128
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    rope_fraction: float = 0.5
    a_floor: float = 1e-4
    is_mimo: bool = False
    mimo_rank: int = 1
    is_outproj_norm: bool = False
    a_activation: str = "heavy-tail"
    d_intermediate: int = 0  # as built: already rounded up to a multiple of 128
    vocab_multiple: int = 8
    tie_embeddings: bool = True

    @property
    def heads(self):
        return self.expand * self.d_model // self.headdim

    @property
    def angles(self):
        rotated = int(self.d_state * self.rope_fraction)
        return (rotated - rotated % 2) // 2

    @property
    def padded_vocab(self):
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def in_proj_splits(self):
        inner, keys = self.heads * self.headdim, self.mimo_rank * self.ngroups * self.d_state
        return [inner, inner, keys, keys, self.heads, self.heads, self.heads, self.angles]


def config_from_json(path):
    """Reads the package's config.json, its defaults filled in."""
    raw = json.loads(pathlib.Path(path).read_text())
    ssm = raw.get("ssm_cfg", {})
    if ssm.get("layer") != "Mamba3":
        raise ValueError(f"{path}: ssm_cfg.layer is {ssm.get('layer')!r}; expected 'Mamba3'")
    if raw.get("attn_layer_idx"):
        raise ValueError(f"{path}: attention layers are outside this baseline")
    is_mimo = ssm.get("is_mimo", False)
    names = ("d_state", "expand", "headdim", "ngroups", "rope_fraction", "is_outproj_norm")
    hidden = raw.get("d_intermediate", 0)
    return Config(
        **{k: raw[k] for k in ("d_model", "n_layer", "vocab_size", "tie_embeddings") if k in raw},
        **{k: ssm[k] for k in names if k in ssm},
        a_floor=ssm.get("A_floor", 1e-4),
        is_mimo=is_mimo,
        mimo_rank=ssm.get("mimo_rank", 4) if is_mimo else 1,
        d_intermediate=-(-hidden // 128) * 128,
        vocab_multiple=raw.get("pad_vocab_size_multiple", 8),
    )


def preset(name):
    """Official sizes, and 24m; the hidden width is already rounded as the package rounds it."""
    kind, size = name.split("-", 1)
    if size == "24m":
        return dataclasses.replace(
            preset(f"{kind}-187m"),
            d_model=384,
            n_layer=10,
            d_intermediate=1024,
            vocab_size=8192,
            d_state=64,
        )
    widths = {"187m": (768, 12), "440m": (1024, 24), "890m": (1536, 24), "1.5b": (2048, 24)}
    hidden = {
        "siso": {"187m": 1536, "440m": 2048, "890m": 3072, "1.5b": 4096},
        "mimo": {"187m": 1280, "440m": 1792, "890m": 2816, "1.5b": 3840},
    }
    d_model, n_layer = widths[size]
    return Config(
        d_model=d_model,
        n_layer=n_layer,
        vocab_size=128256,
        d_intermediate=hidden[kind][size],
        is_mimo=kind == "mimo",
        mimo_rank=4 if kind == "mimo" else 1,
    )


def expected_shapes(config):
    """Name and shape of every tensor of a checkpoint."""
    c, rank = config, config.mimo_rank
    shapes = {"backbone.embedding.weight": (c.padded_vocab, c.d_model)}
    for i in range(c.n_layer):
        layer = f"backbone.layers.{i}."
        mixer = layer + "mixer."
        inner = c.heads * c.headdim
        shapes[layer + "norm.weight"] = (c.d_model,)
        shapes[mixer + "in_proj.weight"] = (sum(c.in_proj_splits), c.d_model)
        shapes[mixer + "out_proj.weight"] = (c.d_model, inner)
        for name in ("dt_bias", "D"):
            shapes[mixer + name] = (c.heads,)
        for name in ("B", "C"):
            shapes[mixer + name + "_bias"] = (c.heads, rank, c.d_state)
            shapes[mixer + name + "_norm.weight"] = (c.d_state,)
        if c.is_mimo:
            for name in ("mimo_x", "mimo_z", "mimo_o"):
                shapes[mixer + name] = (c.heads, rank, c.headdim)
        if c.is_outproj_norm:
            shapes[mixer + "norm.weight"] = (inner,)
        if c.d_intermediate:
            shapes[layer + "norm2.weight"] = (c.d_model,)
            shapes[layer + "mlp.fc1.weight"] = (2 * c.d_intermediate, c.d_model)
            shapes[layer + "mlp.fc2.weight"] = (c.d_model, c.d_intermediate)
    shapes["backbone.norm_f.weight"] = (c.d_model,)
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.padded_vocab, c.d_model)
    return shapes


KEPT_FP32 = ("dt_bias", "B_bias", "C_bias", ".D", "mimo_x", "mimo_z", "mimo_o")


def random_weights(config, seed=0, dtype=torch.bfloat16):
    """A checkpoint as freshly initialised; per-head parameters in fp32, as the package stores."""
    gen = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        kind = torch.float32 if name.endswith(KEPT_FP32) else dtype
        tensor = torch.empty(shape, dtype=kind)
        if name.endswith("embedding.weight"):
            tensor.normal_(0.0, 0.02, generator=gen)
        elif len(shape) == 2:
            bound = 1.0 / math.sqrt(shape[1])
            if name.endswith(("out_proj.weight", "fc2.weight")):
                bound /= math.sqrt(config.n_layer)
            tensor.uniform_(-bound, bound, generator=gen)
        elif name.endswith("dt_bias"):
            tensor.uniform_(math.log(1e-3), math.log(1e-1), generator=gen)
            dt = tensor.exp().clamp_(min=1e-4)
            tensor = dt + torch.log(-torch.expm1(-dt))
        elif name.endswith(("mimo_x", "mimo_o")):
            tensor.fill_(1.0 / config.mimo_rank)
        else:
            tensor.fill_(1.0)
        weights[name] = tensor
    return weights


def read_weights(folder):
    """The state dict of a folder: pytorch_model.bin, or safetensors (single or sharded)."""
    folder = pathlib.Path(folder)
    if (folder / "pytorch_model.bin").exists():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    weights = {}
    for file in files:
        weights.update(load_file(folder / file))
    return weights


def _wrapped(angle):
    return angle.sub_(torch.floor(angle / TWO_PI).mul_(TWO_PI))


@dataclasses.dataclass
class LayerState:
    """What one layer carries between calls; all four move together."""

    angle: torch.Tensor  # [b, h, s] rotation of the last token in radians, wrapped
    ssm: torch.Tensor  # [b, h, p, n] holding the last token's gamma term
    k: torch.Tensor  # [b, h, r, n] last token's key: normalised, biased, rotated, unscaled
    v: torch.Tensor  # [b, h, p] last token's x, without mimo_x


class Mixer:
    """The Mamba-3 layer.

    Linears run in linear_dtype, the products of the chunked scan in scan_dtype, the rest and the
    state in compute_dtype.
    """

    def __init__(self, config, weights, linear_dtype, compute_dtype, scan_dtype):
        self.config, self.dtype, self.scan_dtype = config, compute_dtype, scan_dtype
        small = {k: v.to(compute_dtype) for k, v in weights.items() if "proj" not in k}
        in_proj = self.ordered("in_proj.weight", weights["in_proj.weight"])
        self.in_proj = in_proj.to(linear_dtype)
        self.out_proj = weights["out_proj.weight"].to(linear_dtype)
        self.dt_bias, self.skip = small["dt_bias"], small["D"]
        self.b_bias = self.ordered("B_bias", small["B_bias"])  # [h, r, n]
        self.c_bias = self.ordered("C_bias", small["C_bias"])
        self.b_norm = self.ordered("B_norm.weight", small["B_norm.weight"])
        self.c_norm = self.ordered("C_norm.weight", small["C_norm.weight"])
        self.mimo_x, self.mimo_z = small.get("mimo_x"), small.get("mimo_z")  # [h, r, p]
        self.mimo_o = small.get("mimo_o")
        self.norm = None
        if config.is_outproj_norm:
            self.norm = small["norm.weight"].view(config.heads, 1, 1, config.headdim)

    def ordered(self, name, tensor):
        """A tensor of a checkpoint, or its gradient, in the order in which this class keeps it.

        It brings rotated pairs side by side, so that a rotation is one complex product. SISO pairs
        them already. MIMO pairs (i, i + n/2); a permutation of n that q and k share changes no dot
        product, hence no output.
        """
        if not self.config.is_mimo:
            return tensor
        if name in ("B_bias", "C_bias", "B_norm.weight", "C_norm.weight"):
            return tensor.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2).contiguous()
        if name != "in_proj.weight":
            return tensor
        inner, _, keys = self.config.in_proj_splits[:3]
        zx, bc, rest = tensor.split((2 * inner, 2 * keys, tensor.shape[0] - 2 * (inner + keys)))
        pairs = bc.view(-1, 2, self.config.d_state // 2, bc.shape[1]).transpose(1, 2)
        return torch.cat((zx, pairs.reshape(bc.shape), rest))

    def new_state(self, batch):
        c = self.config
        shapes = {
            "angle": (batch, c.heads, c.angles),
            "ssm": (batch, c.heads, c.headdim, c.d_state),
            "k": (batch, c.heads, c.mimo_rank, c.d_state),
            "v": (batch, c.heads, c.headdim),
        }
        return LayerState(**{k: torch.zeros(s, dtype=self.dtype) for k, s in shapes.items()})

    def _scalars(self, raw_dt, raw_a, raw_trap):
        """dt, a*dt, lam*dt and (1-lam)*dt, from the raw columns of in_proj."""
        c = self.config
        dt = F.softplus(raw_dt + self.dt_bias, threshold=40)
        if c.a_activation == "softplus":
            rate = F.softplus(raw_a, threshold=40)
        else:
            rate = F.relu(raw_a) + 1.0 / (1.0 + F.relu(-raw_a))
        log_decay = rate.clamp_(min=c.a_floor).mul_(dt).neg_()
        return dt, log_decay, torch.sigmoid(raw_trap).mul_(dt), torch.sigmoid(-raw_trap).mul_(dt)

    def _rotated(self, raw, norm, bias, phase):
        """RMSNorm, bias, rotation. raw [..., g, r, c, n], phase [..., h, 1, c, s] complex."""
        c = self.config
        base = F.rms_norm(raw, (c.d_state,), norm, NORM_EPSILON)
        per_group = bias.view(c.ngroups, c.heads // c.ngroups, c.mimo_rank, 1, c.d_state)
        out = (base.unsqueeze(-4) + per_group).flatten(-5, -4)  # [..., h, r, c, n]
        pairs = torch.view_as_complex(out[..., : 2 * c.angles].unflatten(-1, (c.angles, 2)))
        pairs.mul_(phase)
        return out

    def _gated(self, o, z):
        """o [..., h, r, c, p], z [..., h, 1, c, p] -> [..., h, c, p]: out-norm, gate, rank sum."""
        if self.norm is not None:
            o = F.rms_norm(o, (self.config.headdim,), None, NORM_EPSILON).mul_(self.norm)
        if not self.config.is_mimo:
            return o.mul_(F.silu(z)).squeeze(-3)
        gate = F.silu(z * self.mimo_z.unsqueeze(-2)).mul_(self.mimo_o.unsqueeze(-2))
        return o.mul_(gate).sum(-3)

    def prefill(self, u, state, chunk, block):
        """u [b, t, d] -> [b, t, d]; the scan walks over blocks of tokens to stay in cache."""
        projected = F.linear(u, self.in_proj)
        parts = projected.split(self.config.in_proj_splits, -1)
        tokens = u.shape[1]
        step = min(block, tokens)
        outputs = []
        for start in range(0, tokens, step):
            end = min(start + step, tokens)
            size = min(chunk, end - start)
            # The first token of the next block decides how much this block's last key weighs, but
            # its term may as well be added when that block begins: the state then stays canonical.
            block_parts = [part[:, start:end] for part in parts]
            outputs.append(self._scan_block(block_parts, state, size, u.dtype))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return F.linear(y, self.out_proj)

    def _chunked(self, part, chunk, inner):
        """[b, t, inner...] -> [b, k, inner..., c] views, zero-padded to whole chunks.

        inner is a tuple of sizes; the last one stays behind c unless it is empty.
        """
        short = -part.shape[1] % chunk
        if short:
            part = F.pad(part, (0, 0, 0, short))
        part = part.unflatten(1, (-1, chunk)).unflatten(-1, inner)  # [b, k, c, inner...]
        return part

    def _scan_block(self, parts, state, chunk, out_dtype):
        c = self.config
        tokens = parts[0].shape[1]
        raw = [part.to(self.dtype) for part in parts]
        heads = (c.heads, 1, c.headdim)
        keys = (c.mimo_rank, c.ngroups, c.d_state)
        z = self._chunked(raw[0], chunk, heads).permute(0, 1, 3, 4, 2, 5)  # [b, k, h, 1, c, p]
        x = self._chunked(raw[1], chunk, heads).permute(0, 1, 3, 4, 2, 5)
        b_raw = self._chunked(raw[2], chunk, keys).permute(0, 1, 4, 3, 2, 5)  # [b, k, g, r, c, n]
        c_raw = self._chunked(raw[3], chunk, keys).permute(0, 1, 4, 3, 2, 5)
        scalars = self._scalars(*raw[4:7])  # [b, t, h]
        # Padding has dt = 0: decay 1, weight 0, no rotation.
        dt, log_decay, gamma, rest = (
            self._chunked(v, chunk, (c.heads,)).transpose(2, 3).contiguous() for v in scalars
        )  # [b, k, h, c]
        angle_rate = self._chunked(torch.tanh(raw[7]).mul_(math.pi), chunk, (1, c.angles))
        phase = self._phases(angle_rate.transpose(2, 3), dt, state)
        key = self._rotated(b_raw, self.b_norm, self.b_bias, phase)  # [b, k, h, r, c, n]
        query = self._rotated(c_raw, self.c_norm, self.c_bias, phase)
        value = x * self.mimo_x.unsqueeze(-2) if c.is_mimo else x.contiguous()  # [b,k,h,r,c,p]

        self._enter(state, rest[:, 0, :, 0])
        o = self._attend(query, key, value, log_decay, gamma, rest, state)
        last = (tokens - 1) % chunk
        state.k = key[:, -1, :, :, last].clone()
        state.v = x[:, -1, :, 0, last].clone()
        y = self._gated(o, z)  # [b, k, h, c, p]
        y = y.transpose(2, 3).to(out_dtype).reshape(y.shape[0], -1, c.heads * c.headdim)
        return y[:, :tokens]

    def _phases(self, angle_rate, dt, state):
        """Unit complex numbers [b, k, h, 1, c, s]; leaves the last token's angle in the state.

        Sums run inside a chunk and wrap between chunks, so they stay small and exact in fp32.
        """
        angles = (angle_rate * dt.unsqueeze(-1)).cumsum_(-2)  # [b, k, h, c, s]
        ends = torch.cat((state.angle.unsqueeze(1), angles[..., -1, :]), 1).cumsum_(1)
        ends = _wrapped(ends)
        angles.add_(ends[:, :-1].unsqueeze(-2))
        state.angle = ends[:, -1].clone()
        return torch.polar(torch.ones((), dtype=angles.dtype), angles).unsqueeze(-3)

    def _enter(self, state, rest_first):
        """Adds what the first token of a block owes to the token before it."""
        v = state.v.unsqueeze(-2)  # [b, h, 1, p]
        if self.config.is_mimo:
            v = v * self.mimo_x  # [b, h, r, p]
        v = v * rest_first[..., None, None]
        state.ssm.add_(v.transpose(-1, -2) @ state.k)

    def _attend(self, query, key, value, log_decay, gamma, rest, state):
        """All chunks of a block: -> o [b, k, h, r, c, p] with the skip; moves state.ssm on."""
        c = self.config
        batch, chunks, heads, ranks, chunk, _ = query.shape
        cs = log_decay.cumsum(-1)  # [b, k, h, c]
        following = rest.transpose(1, 2).flatten(-2)  # [b, h, t]
        following = F.pad(following[..., 1:], (0, 1))
        weight = following.unflatten(-1, (chunks, chunk)).transpose(1, 2) + gamma  # [b, k, h, c]

        # The weight joins the exponent: one pass less over the [c, c] matrices.
        decay = cs.unsqueeze(-1) - (cs - weight.log()).unsqueeze(-2)  # [b, k, h, c, c]
        future = torch.full((chunk, chunk), -math.inf, dtype=cs.dtype).triu_()
        decay.add_(future).exp_()
        decay.diagonal(dim1=-2, dim2=-1).copy_(gamma)

        kind, flat = self.scan_dtype, (batch * chunks * heads, ranks * chunk)
        q, k, x = (v.reshape(*flat, v.shape[-1]).to(kind) for v in (query, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))  # [bkh, rc, rc]
        by_rank = scores.view(-1, ranks, chunk, ranks, chunk)
        by_rank.mul_(decay.to(kind).view(-1, 1, chunk, 1, chunk))
        skip = self.skip.to(kind).expand(batch * chunks, heads).reshape(-1, 1)
        scores.diagonal(dim1=1, dim2=2).add_(skip)

        to_end = (cs[..., -1:] - cs).exp_().mul_(weight)  # [b, k, h, c]
        scaled = (value * to_end.unsqueeze(-2).unsqueeze(-1)).to(kind)
        states = torch.bmm(scaled.view(*flat, -1).transpose(1, 2), k)  # [bkh, p, n]
        states = states.view(batch, chunks, heads, c.headdim, c.d_state).to(self.dtype)
        entering = self._recurrence(states, cs[..., -1].exp()[..., None, None], state)

        entering = entering.view(flat[0], c.headdim, c.d_state).to(kind)
        o = torch.bmm(q, entering.transpose(1, 2))
        o.view(-1, ranks, chunk, c.headdim).mul_(cs.exp().to(kind).view(-1, 1, chunk, 1))
        return o.baddbmm_(scores, x).to(self.dtype).view(*query.shape[:-1], c.headdim)

    @staticmethod
    def _recurrence(states, chunk_decay, state):
        """The state before each chunk, [b, k, h, p, n]; state.ssm gets that after the last."""
        entering = torch.empty_like(states)
        entering[:, 0] = state.ssm
        for i in range(states.shape[1] - 1):
            torch.addcmul(states[:, i], entering[:, i], chunk_decay[:, i], out=entering[:, i + 1])
        state.ssm = torch.addcmul(states[:, -1], entering[:, -1], chunk_decay[:, -1])
        return entering

    def step(self, u, state):
        """One token of every sequence: u [b, d] -> [b, d]; the state is updated in place."""
        c = self.config
        parts = F.linear(u, self.in_proj).split(c.in_proj_splits, -1)
        z, x, b_raw, c_raw, raw_dt, raw_a, raw_trap, angle = (v.to(self.dtype) for v in parts)
        dt, log_decay, gamma, rest = self._scalars(raw_dt, raw_a, raw_trap)  # [b, h]
        alpha = log_decay.exp_()
        rate = torch.tanh(angle).mul_(math.pi).unsqueeze(1)  # [b, 1, s]
        state.angle = _wrapped(torch.addcmul(state.angle, rate, dt.unsqueeze(-1)))
        phase = torch.polar(torch.ones((), dtype=self.dtype), state.angle)[:, :, None, None]
        keys = (c.mimo_rank, c.ngroups, 1, c.d_state)
        b_raw, c_raw = (v.unflatten(-1, keys).transpose(1, 2) for v in (b_raw, c_raw))
        k = self._rotated(b_raw, self.b_norm, self.b_bias, phase).squeeze(-2)  # [b, h, r, n]
        q = self._rotated(c_raw, self.c_norm, self.c_bias, phase).squeeze(-2)
        x = x.unflatten(-1, (c.heads, c.headdim))  # [b, h, p]

        beta = rest.mul_(alpha)[..., None, None]
        values = torch.stack((state.v, x), 2).unsqueeze(3)  # [b, h, 2, 1, p]
        if c.is_mimo:
            values = values * self.mimo_x.unsqueeze(1)  # [b, h, 2, r, p]
        shares = torch.cat((beta, gamma[..., None, None]), 2).unsqueeze(-1)
        rows = (values * shares).flatten(2, 3).flatten(0, 1)  # [bh, 2r, p]
        ssm = state.ssm.view(-1, c.headdim, c.d_state)
        ssm.mul_(alpha.view(-1, 1, 1))
        ssm.baddbmm_(rows.transpose(1, 2), torch.cat((state.k, k), 2).flatten(0, 1))
        o = torch.bmm(q.flatten(0, 1), ssm.transpose(1, 2))  # [bh, r, p]
        o = o.view(-1, c.heads, c.mimo_rank, 1, c.headdim)
        o.addcmul_(self.skip.view(-1, 1, 1, 1), values[:, :, 1].unsqueeze(-2))
        state.k, state.v = k, x
        z = z.view(-1, c.heads, 1, 1, c.headdim)
        return F.linear(self._gated(o, z).flatten(1).to(u.dtype), self.out_proj)


class Model:
    """dtype is that of embedding and linears; residual stream, norms and states are at least fp32.

    scan_dtype is that of the operands of the products inside the chunked scan: "auto" for the
    linears' own, "fp32" to keep them wider than bf16.
    """

    def __init__(self, config, weights, dtype="fp32", scan_dtype="auto"):
        linear = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.compute = torch.float64 if dtype == "fp64" else torch.float32
        self.scan_dtype = linear if scan_dtype == "auto" else self.compute
        for name, shape in expected_shapes(config).items():
            if name not in weights or tuple(weights[name].shape) != shape:
                found = tuple(weights[name].shape) if name in weights else "no such tensor"
                raise ValueError(f"{name}: {found}; the configuration needs {shape}")
        self.config = config
        self.embedding = weights["backbone.embedding.weight"].to(linear)
        self.head = self.embedding
        if not config.tie_embeddings:
            self.head = weights["lm_head.weight"].to(linear)
        self.norm_f = weights["backbone.norm_f.weight"].to(self.compute)
        self.layers = []
        for i in range(config.n_layer):
            prefix = f"backbone.layers.{i}."
            own = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
            mixer = {k[6:]: v for k, v in own.items() if k.startswith("mixer.")}
            layer = {"norm": own["norm.weight"].to(self.compute)}
            layer["mixer"] = Mixer(config, mixer, linear, self.compute, self.scan_dtype)
            if config.d_intermediate:
                layer["norm2"] = own["norm2.weight"].to(self.compute)
                layer["fc1"] = own["mlp.fc1.weight"].to(linear)
                layer["fc2"] = own["mlp.fc2.weight"].to(linear)
            self.layers.append(layer)

    def new_state(self, batch):
        return [layer["mixer"].new_state(batch) for layer in self.layers]

    def weight_bytes(self):
        """Bytes of the matrices that a decoded token reads (a tied embedding once)."""
        total = self.head.nbytes
        for layer in self.layers:
            total += layer["mixer"].in_proj.nbytes + layer["mixer"].out_proj.nbytes
            total += sum(layer[k].nbytes for k in ("fc1", "fc2") if k in layer)
        return total

    def _norm(self, residual, weight):
        normed = F.rms_norm(residual, (self.config.d_model,), weight, NORM_EPSILON)
        return normed.to(self.head.dtype)

    def _run(self, ids, mix):
        residual = F.embedding(ids, self.embedding).to(self.compute)
        for index, layer in enumerate(self.layers):
            residual.add_(mix(layer["mixer"], index, self._norm(residual, layer["norm"])))
            if "fc1" in layer:
                up, gate = F.linear(self._norm(residual, layer["norm2"]), layer["fc1"]).chunk(2, -1)
                residual.add_(F.linear(F.silu(gate).mul_(up), layer["fc2"]))
        return residual

    def logits(self, residual):
        return F.linear(self._norm(residual, self.norm_f), self.head)

    def prefill(self, ids, state, every=False, chunk=64, block=256, segment=2048):
        """ids [b, t] -> logits [b, v] of the last token, or [b, t, v]; memory follows segment."""
        outputs = []
        for start in range(0, ids.shape[1], segment):
            residual = self._run(
                ids[:, start : start + segment],
                lambda mixer, i, u: mixer.prefill(u, state[i], chunk, block),
            )
            outputs.append(self.logits(residual) if every else residual[:, -1])
        return torch.cat(outputs, 1) if every else self.logits(outputs[-1])

    def step(self, ids, state):
        """ids [b] -> logits [b, v]."""
        return self.logits(self._run(ids, lambda mixer, i, u: mixer.step(u, state[i])))
