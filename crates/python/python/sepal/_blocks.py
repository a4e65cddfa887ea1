"""Frozen blocks of a model as one differentiable operation of PyTorch."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from . import _sepal
from ._options import Swarm, listed_texts, swarm_options, to_json
from ._progress import Progress, listener

_TOKENS, _PREFIX, _DEEP_PROMPTS = "tokens", "prefix", "deep_prompts"


class RemoteBlocks(nn.Module):
    """All transformer blocks of a model, frozen, in this process or on servers.

    ``model`` is a source as in a pipeline file (``hub:OWNER/NAME``, a folder, a GGUF file), or a mapping with the keys of
    ``model``. ``swarm`` is None for this process, the address of a server or a list of them, or a mapping as ``swarm`` in a
    pipeline file (``{"use": "p2p", "with": {"ticket": "swarm.ticket"}}``).

    The module has no parameters. Outputs are differentiable in the hidden states, the prefix and the tunables; each
    output serves one backward pass. Tensors are passed without copies: fp32 and contiguous on the CPU as they are, others
    are converted. Change none of them in place between a call and its backward pass; that is an error.
    """

    def __init__(
        self, model: Union[str, os.PathLike[str], Mapping[str, Any]], swarm: Swarm = None, *, progress: Progress = False
    ) -> None:
        super().__init__()
        self._native = _sepal.Blocks(_pipeline(model, swarm), listener(progress))
        self._facts: dict[str, Any] = json.loads(self._native.facts)
        self._finalizer = weakref.finalize(self, self._native.close)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the model."""
        return int(self._facts["n_blocks"])

    @property
    def hidden_size(self) -> int:
        """Size of a hidden state."""
        return int(self._facts["hidden"])

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model."""
        return int(self._facts["vocab_size"])

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the model's initial weights."""
        return float(self._facts["initializer_range"])

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent to servers and received from them so far."""
        return self._native.traffic()

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prefix: Tensor | None = None,
        deep_prompts: Tensor | None = None,
        tunables: Mapping[str, Tensor] | None = None,
        select: str = "all",
    ) -> Tensor:
        """Run the blocks on the rows of ``hidden [rows, seq, hidden_size]``.

        ``attention_mask [rows, seq]`` is 0 at padding, on either side; padding is neither sent nor computed. ``prefix
        [prefix_len, hidden_size]`` stands before every row, and ``deep_prompts [n_blocks, prefix_len, hidden_size]`` are
        added to the states of the prefix before each block; they need a ``prefix`` of the same length. ``tunables`` are
        other tensors inside the blocks by name, stacked by block.

        Returns the states of all tokens, without the prefix, as ``[rows, seq, hidden_size]`` with zeros at padding
        (``select="all"``), or ``[rows, hidden_size]``: those of the last tokens (``"last"``) or the means (``"mean"``).
        """
        if hidden.dim() != 3 or hidden.shape[2] != self.hidden_size:
            raise ValueError(f"hidden has shape {list(hidden.shape)}, expected [rows, seq, {self.hidden_size}]")
        rows, seq, size = hidden.shape
        if attention_mask is None:
            mask, lengths, tokens = None, [seq] * rows, hidden.reshape(rows * seq, size)
        else:
            mask = attention_mask.to(hidden.device) != 0
            if mask.shape != hidden.shape[:2]:
                raise ValueError(f"attention_mask has shape {list(mask.shape)}, expected {[rows, seq]}")
            lengths = mask.sum(1).tolist()
            # Selecting copies, so complete rows are left as they are.
            mask = None if lengths == [seq] * rows else mask
            tokens = hidden.reshape(rows * seq, size) if mask is None else hidden[mask]  # [n_tokens, hidden]
        if rows == 0 or not all(lengths):
            raise ValueError("there are no rows" if rows == 0 else "a row has no token")
        if deep_prompts is not None and deep_prompts.dim() == 3:
            length, found = deep_prompts.shape[1], 0 if prefix is None else prefix.shape[0]
            if length != found:
                given = "there is no prefix" if prefix is None else f"prefix has {found}"
                message = f"deep_prompts are for a prefix of {length} positions, and {given}"
                raise ValueError(f"{message}; give a prefix of the same length")
        named = {_TOKENS: tokens}
        arguments = {_PREFIX: prefix, _DEEP_PROMPTS: deep_prompts}
        named.update({name: tensor for name, tensor in arguments.items() if tensor is not None})
        for name, tensor in (tunables or {}).items():
            if name in (_TOKENS, *arguments):
                raise ValueError(f"tunables has {name!r}, which is an argument of its own")
            named[name] = tensor
        output = self._call("forward", named, lengths, select).to(hidden.device, hidden.dtype)
        if select != "all":
            return output  # [rows, hidden]
        if mask is None:
            return output.reshape(rows, seq, size)
        return output.new_zeros(rows, seq, size).index_put(mask.nonzero(as_tuple=True), output)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the frozen embeddings of token ids, whole numbers of any shape: ``[.., hidden_size]``, fp32."""
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids is {type(input_ids).__name__}; give a tensor of token ids")
        if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
            raise TypeError(f"input_ids has the type {input_ids.dtype}; give whole numbers, such as torch.int64")
        ids = input_ids.detach().to("cpu", torch.int64).reshape(-1)
        embedded = from_dlpack(self._native.embed(to_dlpack(ids.contiguous())))
        return embedded.reshape(*input_ids.shape, self.hidden_size).to(input_ids.device)

    def embed_prompts(self, prompts: Tensor) -> Tensor:
        """Return the input of the first block for soft prompts ``[prefix_len, hidden_size]``; differentiable."""
        return self._call("embed_prompts", {_TOKENS: prompts}).to(prompts.device, prompts.dtype)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the norm after the last block to states ``[.., hidden_size]``; differentiable."""
        return self._call("final_norm", {_TOKENS: hidden}).to(hidden.device, hidden.dtype)

    def tokenize(self, texts: Sequence[str], max_length: int = 512) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask [rows, seq]`` of texts, by the model's tokenizer, padded right."""
        rows = self._native.tokenize([texts] if isinstance(texts, str) else listed_texts(texts, "texts"), max_length)
        seq = max(map(len, rows), default=0)
        ids = torch.tensor([row + [0] * (seq - len(row)) for row in rows], dtype=torch.int64)
        mask = torch.tensor([[1] * len(row) + [0] * (seq - len(row)) for row in rows], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": mask}

    def close(self) -> None:
        """Free the blocks and leave their servers. Later calls fail."""
        self._finalizer()

    def extra_repr(self) -> str:
        return str(self._facts["description"])

    def _call(self, operation: str, named: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """Run an operation of the native module on fp32 tensors of the CPU."""
        tensors = [tensor.to("cpu", torch.float32).contiguous() for tensor in named.values()]
        needs = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
        output = _Call.apply(  # type: ignore[no-untyped-call]
            self._native, operation, arguments, list(named), needs, *tensors
        )
        assert isinstance(output, Tensor)
        return output


class _Call(torch.autograd.Function):
    """One operation of the native module as a node of PyTorch's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        native: _sepal.Blocks,
        operation: str,
        arguments: tuple[Any, ...],
        names: list[str],
        needs: list[bool],
        *tensors: Tensor,
    ) -> Tensor:
        inputs = [(name, 0, to_dlpack(tensor.detach()), need) for name, tensor, need in zip(names, tensors, needs)]
        first = inputs if operation == "forward" else inputs[0]
        output, ctx.graph = getattr(native, operation)(first, *arguments)
        ctx.native, ctx.needs = native, needs
        # Kept for the check below only: the native graph has its own references.
        ctx.save_for_backward(*tensors)
        return from_dlpack(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        # Raises if one of them was changed in place: servers repeat calls from these very numbers.
        _ = ctx.saved_tensors
        gradients = ctx.native.backward(ctx.graph, to_dlpack(gradient.to("cpu", torch.float32).contiguous()))
        found = [None if capsule is None else from_dlpack(capsule) for capsule in gradients]
        return (None, None, None, None, None, *(grad if need else None for grad, need in zip(found, ctx.needs)))


def _pipeline(model: Union[str, os.PathLike[str], Mapping[str, Any]], swarm: Swarm) -> str:
    """Return a pipeline with this model and swarm. Its other keys are never used, but a pipeline has them."""
    described = dict(model) if isinstance(model, Mapping) else {"source": os.fspath(model)}
    return to_json({
        "name": "blocks",
        "model": described,
        "swarm": swarm_options(swarm),
        "task": {"use": "sequence-classification", "with": {"labels": ["0", "1"]}},
        "tuning": {"use": "ptune", "with": {"pre_seq_len": 1}},
        "data": {"train": "rows.arrow", "validation": "rows.arrow", "text": "text", "label": "label"},
        "optimizer": {"use": "adamw", "with": {"lr": 0.001}},
        "schedule": {"use": "constant"},
    })
