"""The same model for training: forward and backward of one micro-batch by autograd.

Letters as in eager_mamba3.py, whose chunked form this is: whole sequences from fresh states, and
without the changes in place that autograd does not take back.
"""

import math

import torch
import torch.nn.functional as F

from eager_mamba3 import NORM_EPSILON, Mixer, Model

# Names in a checkpoint, and where Mixer and Model keep them.
MIXER_LEAVES = {
    "in_proj.weight": "in_proj",
    "out_proj.weight": "out_proj",
    "dt_bias": "dt_bias",
    "D": "skip",
    "B_bias": "b_bias",
    "C_bias": "c_bias",
    "B_norm.weight": "b_norm",
    "C_norm.weight": "c_norm",
    "mimo_x": "mimo_x",
    "mimo_z": "mimo_z",
    "mimo_o": "mimo_o",
    "norm.weight": "norm",
}
BLOCK_LEAVES = {
    "norm": "norm.weight",
    "norm2": "norm2.weight",
    "fc1": "mlp.fc1.weight",
    "fc2": "mlp.fc2.weight",
}


def _rms_norm(v, weight):
    return F.rms_norm(v, (v.shape[-1],), weight, NORM_EPSILON)


def _decays(at, of):
    """at, of [..., c] -> [..., c, c]: exp(at_i - of_j) below the diagonal, zeros elsewhere."""
    future = torch.full((at.shape[-1],) * 2, -math.inf, dtype=at.dtype).triu_()
    return (at.unsqueeze(-1) - of.unsqueeze(-2)).add_(future).exp_()


class TrainingMixer(Mixer):
    def _scalars(self, raw_dt, raw_a, raw_trap):
        c = self.config
        dt = F.softplus(raw_dt + self.dt_bias, threshold=40)
        if c.a_activation == "softplus":
            rate = F.softplus(raw_a, threshold=40)
        else:
            rate = F.relu(raw_a) + 1.0 / (1.0 + F.relu(-raw_a))
        log_decay = -(rate.clamp(min=c.a_floor) * dt)
        lam = torch.sigmoid(raw_trap)
        return dt, log_decay, lam * dt, (1.0 - lam) * dt

    def _rotated(self, raw, norm, bias, phase):
        c = self.config
        base = _rms_norm(raw, norm)
        per_group = bias.view(c.ngroups, c.heads // c.ngroups, c.mimo_rank, 1, c.d_state)
        out = (base.unsqueeze(-4) + per_group).flatten(-5, -4)  # [b, k, h, r, c, n]
        pairs = torch.view_as_complex(out[..., : 2 * c.angles].unflatten(-1, (c.angles, 2)))
        turned = torch.view_as_real(pairs * phase).flatten(-2)
        return torch.cat((turned, out[..., 2 * c.angles :]), -1)

    def _phases_from_zero(self, angle_rate, dt):
        """Unit complex numbers [b, k, h, 1, c, s]."""
        angles = (angle_rate * dt.unsqueeze(-1)).cumsum(-2)  # [b, k, h, c, s]
        starts = F.pad(angles[:, :-1, :, -1].cumsum(1), (0, 0, 0, 0, 1, 0))
        angles = angles + starts.unsqueeze(-2)
        return torch.polar(torch.ones((), dtype=angles.dtype), angles).unsqueeze(-3)

    def _gated(self, o, z):
        c = self.config
        if self.norm is not None:
            o = F.rms_norm(o, (c.headdim,), None, NORM_EPSILON) * self.norm
        if not c.is_mimo:
            return (o * F.silu(z)).squeeze(-3)
        gate = F.silu(z * self.mimo_z.unsqueeze(-2)) * self.mimo_o.unsqueeze(-2)
        return (o * gate).sum(-3)

    def train(self, u, chunk):
        """u [b, t, d] -> [b, t, d]"""
        c = self.config
        tokens = u.shape[1]
        chunk = min(chunk, tokens)
        raw = F.linear(u, self.in_proj).split(c.in_proj_splits, -1)
        heads = (c.heads, 1, c.headdim)
        keys = (c.mimo_rank, c.ngroups, c.d_state)
        z = self._chunked(raw[0], chunk, heads).permute(0, 1, 3, 4, 2, 5)  # [b, k, h, 1, c, p]
        x = self._chunked(raw[1], chunk, heads).permute(0, 1, 3, 4, 2, 5)
        b_raw = self._chunked(raw[2], chunk, keys).permute(0, 1, 4, 3, 2, 5)  # [b, k, g, r, c, n]
        c_raw = self._chunked(raw[3], chunk, keys).permute(0, 1, 4, 3, 2, 5)
        dt, log_decay, gamma, rest = self._scalars(*raw[4:7])  # [b, t, h]
        weight = gamma + F.pad(rest[:, 1:], (0, 0, 0, 1))  # the last key has no token behind it
        scalars = (dt, log_decay, gamma, weight)
        dt, log_decay, gamma, weight = (
            self._chunked(v, chunk, (c.heads,)).transpose(2, 3) for v in scalars
        )  # [b, k, h, c]
        rate = self._chunked(torch.tanh(raw[7]) * math.pi, chunk, (1, c.angles))
        phase = self._phases_from_zero(rate.transpose(2, 3), dt)
        key = self._rotated(b_raw, self.b_norm, self.b_bias, phase)  # [b, k, h, r, c, n]
        query = self._rotated(c_raw, self.c_norm, self.c_bias, phase)
        value = x * self.mimo_x.unsqueeze(-2) if c.is_mimo else x  # [b, k, h, r, c, p]
        y = self._gated(self._attend_from_zero(query, key, value, log_decay, gamma, weight), z)
        y = y.transpose(2, 3).reshape(y.shape[0], -1, c.heads * c.headdim)
        return F.linear(y[:, :tokens], self.out_proj)

    def _attend_from_zero(self, query, key, value, log_decay, gamma, weight):
        """-> o [b, k, h, r, c, p] with the skip."""
        c = self.config
        batch, chunks, heads, ranks, chunk, _ = query.shape
        cs = log_decay.cumsum(-1)  # [b, k, h, c]
        # Padding weighs nothing; its logarithm would be no number.
        log_weight = weight.clamp(min=torch.finfo(weight.dtype).tiny).log()
        decay = _decays(cs, cs - log_weight) + torch.diag_embed(gamma)  # [b, k, h, c, c]

        flat = (batch * chunks * heads, ranks * chunk)
        q, k, x = (v.reshape(*flat, v.shape[-1]) for v in (query, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))  # [bkh, rc, rc]
        by_rank = scores.view(-1, ranks, chunk, ranks, chunk)
        scores = (by_rank * decay.view(-1, 1, chunk, 1, chunk)).view_as(scores)

        to_end = (cs[..., -1:] - cs).exp() * weight  # [b, k, h, c]
        scaled = (value * to_end.unsqueeze(-2).unsqueeze(-1)).reshape(*flat, c.headdim)
        states = torch.bmm(scaled.transpose(1, 2), k)  # [bkh, p, n]
        states = states.view(batch, chunks, heads, -1).transpose(1, 2)  # [b, h, k, pn]
        # State i enters chunk j decayed by the chunks between them.
        totals = cs[..., -1].transpose(1, 2).cumsum(-1)  # [b, h, k]
        between = _decays(F.pad(totals[..., :-1], (1, 0)), totals)
        entering = (between @ states).transpose(1, 2).reshape(flat[0], c.headdim, c.d_state)

        o = torch.bmm(q, entering.transpose(1, 2)).view(-1, ranks, chunk, c.headdim)
        o = (o * cs.exp().view(-1, 1, chunk, 1)).view(*flat, c.headdim)
        o = torch.baddbmm(o, scores, x).view(*query.shape[:-1], c.headdim)
        return o + self.skip.view(-1, 1, 1, 1) * value


class TrainingModel(Model):
    """`leaves`: what is learnt, by its name in a checkpoint, as `expected()` orders it."""

    def __init__(self, config, weights, dtype="fp32"):
        super().__init__(config, weights, dtype)
        self.leaves = {}
        self.embedding = self._leaf("backbone.embedding.weight", self.embedding)
        untied = not config.tie_embeddings
        self.head = self._leaf("lm_head.weight", self.head) if untied else self.embedding
        self.norm_f = self._leaf("backbone.norm_f.weight", self.norm_f)
        for i, layer in enumerate(self.layers):
            prefix = f"backbone.layers.{i}."
            mixer = layer["mixer"]
            mixer.__class__ = TrainingMixer
            for name, attribute in MIXER_LEAVES.items():
                if getattr(mixer, attribute) is not None:
                    leaf = self._leaf(f"{prefix}mixer.{name}", getattr(mixer, attribute))
                    setattr(mixer, attribute, leaf)
            for key, name in BLOCK_LEAVES.items():
                if key in layer:
                    layer[key] = self._leaf(prefix + name, layer[key])

    def _leaf(self, name, tensor):
        self.leaves[name] = tensor.detach().clone().requires_grad_()
        return self.leaves[name]

    def expected(self, name, gradient):
        """A checkpoint's gradient as that of the leaf lies here."""
        mixer = self.layers[0]["mixer"]
        return mixer.ordered(name.split("mixer.")[-1], gradient).reshape(self.leaves[name].shape)

    def loss(self, ids, targets, chunk):
        """ids, targets [b, t] (-100: none) -> mean cross-entropy over the padded vocabulary."""
        residual = F.embedding(ids, self.embedding)
        for layer in self.layers:
            residual = residual + layer["mixer"].train(_rms_norm(residual, layer["norm"]), chunk)
            if "fc1" in layer:
                normed = _rms_norm(residual, layer["norm2"])
                up, gate = F.linear(normed, layer["fc1"]).chunk(2, -1)
                residual = residual + F.linear(F.silu(gate) * up, layer["fc2"])
        logits = F.linear(_rms_norm(residual, self.norm_f), self.head)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def backward(self, ids, targets, chunk=64):
        """Forward and backward, into fresh gradients of the leaves. Returns the loss."""
        for leaf in self.leaves.values():
            leaf.grad = None
        loss = self.loss(ids, targets, chunk)
        loss.backward()
        return loss.detach()
