"""Files of tensors that took long to make, kept with a fingerprint of what they were made from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Digest(Protocol):
    """One of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Take further bytes."""


def add_tensors(digest: Digest, tensors: Iterable[Tensor]) -> None:
    """Make a fingerprint depend on the values of tensors, as float32."""
    for t in tensors:
        digest.update(t.detach().cpu().float().numpy().tobytes())


def kept_tensors(
    cache: Path | None, fingerprint: str, names: Collection[str]
) -> dict[str, Tensor] | None:
    """Tensors of these names from a file, if it is there, whole, and made from the same."""
    if cache is not None and cache.is_file():
        # A damaged file is as none, and is made again.
        with contextlib.suppress(SafetensorError, OSError), safe_open(cache, "pt") as file:
            same = (file.metadata() or {}).get("fingerprint") == fingerprint
            if same and {*names} <= {*file.keys()}:
                return {name: file.get_tensor(name) for name in names}
    return None


def keep_tensors(cache: Path | None, fingerprint: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file in one move; None keeps nothing.

    Where it cannot be written that is a warning: all goes on, and they are made again next time.
    """
    if cache is None:
        return
    partial = cache.with_name(f".{cache.name}.partial")
    whole = {name: t.contiguous() for name, t in tensors.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, partial, metadata={"fingerprint": fingerprint})
        partial.replace(cache)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        warnings.warn(f"{cache} cannot be kept for the next time: {error}", stacklevel=2)
