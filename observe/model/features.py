"""Image features of a frozen vision tower, computed once per picture."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

Tower = Callable[[Tensor, Tensor], Tensor]
"""Patches (R, D) and grids (I, 3) to features (F, H) of all images, in their order."""


class FeatureCache:
    """Remembers a frozen tower's features by the picture itself; the least used go first.

    The steps' sampling and training passes, later updates on the same rollout and the evaluations
    during training see the same pictures again.
    """

    def __init__(self, *, limit_mb: int, merge: int) -> None:
        self.limit_bytes = limit_mb * 2**20
        """Features beyond this are forgotten again."""
        self.hits = 0
        self.misses = 0
        self._merge = merge
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def features(self, pixels_RD: Tensor, grid_I3: Tensor, tower: Tower) -> Tensor:
        """What ``tower`` makes of the images, those not known yet in one call. No gradient."""
        patches = list(pixels_RD.split(grid_I3.prod(-1).tolist()))
        keys = [_key(patch, grid) for patch, grid in zip(patches, grid_I3, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._features}
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        found = {key: self._features[key] for key in keys if key not in new}
        if new:
            chosen = list(new.values())
            grid_N3 = grid_I3[chosen]
            # Not inference mode, in which sampling runs: training reads these features later.
            with torch.inference_mode(False), torch.no_grad():
                pixels = torch.cat([patches[i].clone() for i in chosen])
                features_FH = tower(pixels, grid_N3.clone())
                tokens = (grid_N3.prod(-1) // self._merge**2).tolist()
                parts = [part.clone() for part in features_FH.split(tokens)]
            found |= dict(zip(new, parts, strict=True))
        for key in keys:
            self._remember(key, found[key])
        return torch.cat([found[key] for key in keys])

    def _remember(self, key: bytes, features: Tensor) -> None:
        if key not in self._features:
            self._features[key] = features
            self._bytes += features.nbytes
        self._features.move_to_end(key)
        while self._bytes > self.limit_bytes:
            _, oldest = self._features.popitem(last=False)
            self._bytes -= oldest.nbytes


def _key(pixels_RD: Tensor, grid_3: Tensor) -> bytes:
    digest = hashlib.blake2b(pixels_RD.contiguous().cpu().numpy().data, digest_size=16)
    digest.update(grid_3.contiguous().cpu().numpy().data)
    return digest.digest()
