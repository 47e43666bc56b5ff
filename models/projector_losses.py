"""The losses of KFAAR (eq. 5-10) and IVFG (eq. 5-11) on embeddings of virtual faces, and ours.

With R the recognisers, T(x, k) the virtual face of photo x under key k, x1 and x2 of one person and y of another:

    anonymity (privacy)        L(R(T(x1, k1)), R(x1), -1)
    synchronism (intra)        L(R(T(x1, k1)), R(T(x2, k1)), 1)
    diversity (conditional)    L(R(T(x1, k1)), R(T(x1, k2)), -1)
    differentiation (inter)    L(R(T(x1, k1)), R(T(y, k1)), -1)
    latent regulariser         |z - mean z|^2, here per coordinate in units of the population's deviations

Both papers print L(f1, f2, -1) = max(m, cos(f1, f2)). Its gradient is that of max(0, cos - m), the cosine embedding
loss as usually written, which is what is used here: they differ by the constant m where cos < m. Embeddings are
those of several recognisers, and each loss is the mean over them.

`contrast` is ours: the softmax of the right partner among all virtual faces of the batch (InfoNCE), which asks for
what verification needs, a gap between same and different, where the pairwise losses ask for single cosines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from keyface.configs.projector import LossName, ProjectorConfig


@dataclass(frozen=True, slots=True)
class Virtual:
    """Unit embeddings (N, R, 128) of the four virtual faces of N triplets, of the originals x1, and P's output for
    the four (4, N, width)."""

    x1_k1: Tensor
    x1_k2: Tensor
    x2_k1: Tensor
    y_k1: Tensor
    original: Tensor
    coordinates: Tensor


def cosine_embedding_loss(first: Tensor, second: Tensor, *, is_same: bool, margin: float) -> Tensor:
    """L of the module's head, mean over (N, R, 128) pairs."""
    cosine = (first * second).sum(-1)
    return (1 - cosine).mean() if is_same else F.relu(cosine - margin).mean()


def contrast_loss(virtual: Virtual, temperature: float) -> Tensor:
    """-log softmax of x2_k1 for x1_k1 among the x2_k1 and y_k1 of all triplets and the x1_k2."""
    total = torch.zeros(())
    own = torch.arange(len(virtual.x1_k1))
    for r in range(virtual.x1_k1.shape[1]):
        others = torch.cat([virtual.x2_k1[:, r], virtual.y_k1[:, r], virtual.x1_k2[:, r]])
        total = total + F.cross_entropy(virtual.x1_k1[:, r] @ others.T / temperature, own)
    return total / virtual.x1_k1.shape[1]


def projector_losses(virtual: Virtual, config: ProjectorConfig) -> dict[LossName, Tensor]:
    """Each loss with a weight above 0, times its weight."""
    margin, weights = config.margin, config.weights
    v = virtual

    def apart(first: Tensor, second: Tensor) -> Tensor:
        return cosine_embedding_loss(first, second, is_same=False, margin=margin)

    found: dict[LossName, Tensor] = {}
    if weights.anonymity:
        found["anonymity"] = weights.anonymity * apart(v.x1_k1, v.original)
    if weights.synchronism:
        same = cosine_embedding_loss(v.x1_k1, v.x2_k1, is_same=True, margin=margin)
        found["synchronism"] = weights.synchronism * same
    if weights.diversity:
        found["diversity"] = weights.diversity * apart(v.x1_k1, v.x1_k2)
    if weights.differentiation:
        found["differentiation"] = weights.differentiation * apart(v.x1_k1, v.y_k1)
    if weights.latent:
        found["latent"] = weights.latent * v.coordinates.square().mean()
    if weights.contrast:
        found["contrast"] = weights.contrast * contrast_loss(v, config.temperature)
    return found
