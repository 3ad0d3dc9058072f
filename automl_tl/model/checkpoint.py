"""Tensors on disk: safetensors written whole or not at all, read with one clear error when damaged."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from automl_tl.errors import RunError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors to `path`; a crash leaves the old file or the new one, never half of one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: _own_copy(tensor) for name, tensor in tensors.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "no space is left on the disk; free some and resume" if full else str(error)
        raise RunError(f"cannot write the checkpoint {path}: {reason}") from None


def _own_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint; raises RunError naming it when it is missing or damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise RunError(f"the checkpoint {path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"the checkpoint {path} is damaged ({error}); delete it and resume the run") from None
    return tensors
