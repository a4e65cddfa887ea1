"""Classes of a Petals notebook over Sepal's blocks.

A loop that trains a classifier with Petals runs with one import changed::

    from sepal.petals import AutoDistributedModelForSequenceClassification

    model = AutoDistributedModelForSequenceClassification.from_pretrained(
        MODEL_NAME, num_labels=2, pre_seq_len=16, tuning_mode="deep_ptune", initial_peers=["10.0.0.5:4000"]
    )
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
    outputs.loss.backward()

The subset: sequence classification with the tuning modes ``ptune`` and ``deep_ptune``. There is no generation. Differences
from Petals: ``initial_peers`` are addresses of Sepal's servers, and without them the blocks run in this process; an
attention mask may have zeros on either side, and rows are read at their last token by that mask; all parameters train.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._blocks import RemoteBlocks
from ._options import Swarm

__all__ = ["AutoDistributedModelForSequenceClassification", "DistributedModelForSequenceClassification", "RemoteBlocks"]

_MODES = (None, "ptune", "deep_ptune")


@dataclass
class SequenceClassifierOutput:
    """Loss, if labels were given, and logits ``[rows, num_labels]``."""

    loss: Tensor | None
    logits: Tensor

    def __getitem__(self, key: Union[str, int]) -> Any:
        """Return a field by name, or by its index among those that are not None."""
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Tensor, ...]:
        """Return the fields that are not None."""
        return (self.logits,) if self.loss is None else (self.loss, self.logits)


class DistributedModelForSequenceClassification(nn.Module):
    """Frozen blocks with trained soft prompts and a linear head.

    Every parameter trains: ``score``, ``prompt_embeddings`` and, for ``deep_ptune``, ``intermediate_prompt_embeddings``,
    which are added to the prompts' states before each block. They start as N(0, initializer_range), as in Petals.
    """

    def __init__(self, blocks: RemoteBlocks, num_labels: int, pre_seq_len: int, tuning_mode: str | None) -> None:
        super().__init__()
        if tuning_mode not in _MODES:
            raise ValueError(f"tuning_mode is {tuning_mode!r}; it is one of {', '.join(map(repr, _MODES))}")
        if (tuning_mode is None) != (pre_seq_len == 0):
            raise ValueError(f"pre_seq_len={pre_seq_len} with tuning_mode={tuning_mode!r}: set both or none")
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; it is at least 1")
        self.blocks = blocks
        hidden, layers = blocks.hidden_size, blocks.n_blocks
        self.config = SimpleNamespace(
            num_labels=num_labels,
            pre_seq_len=pre_seq_len,
            tuning_mode=tuning_mode,
            hidden_size=hidden,
            num_hidden_layers=layers,
            vocab_size=blocks.vocab_size,
            initializer_range=blocks.initializer_range,
            pad_token_id=None,
            problem_type=None,
        )
        self.score = nn.Linear(hidden, num_labels, bias=False)
        self.prompt_embeddings = nn.Embedding(pre_seq_len, hidden) if tuning_mode else None
        self.intermediate_prompt_embeddings = (
            nn.Embedding(pre_seq_len, layers * hidden) if tuning_mode == "deep_ptune" else None
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=blocks.initializer_range)

    def tokenizer(self, texts: Sequence[str], max_length: int = 512) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of texts; the tokenizer of transformers serves as well."""
        return self.blocks.tokenize(texts, max_length)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Union[SequenceClassifierOutput, tuple[Tensor, ...]]:
        """Return the loss and the logits of rows of tokens ``[rows, seq]``.

        Without a mask, tokens after the last one that is not ``config.pad_token_id`` are padding. The loss is that of
        transformers: squared error for one label, cross-entropy for whole numbers, binary cross-entropy for others.
        """
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise TypeError(f"{', '.join(given)}: this model takes input_ids, attention_mask and labels only")
        mask = self._padding(input_ids) if attention_mask is None else attention_mask
        prefix, deep_prompts = self._prompts()
        tokens = self.blocks.embed(input_ids)  # [rows, seq, hidden]
        pooled = self.blocks(tokens, mask, prefix=prefix, deep_prompts=deep_prompts, select="last")  # [rows, hidden]
        weight = self.score.weight
        logits = self.score(self.blocks.final_norm(pooled).to(weight.device, weight.dtype))  # [rows, num_labels]
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        output = SequenceClassifierOutput(loss, logits)
        return output if return_dict else output.to_tuple()

    def _prompts(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the input prompts ``[pre_seq_len, hidden]`` and those of the blocks ``[n_blocks, pre_seq_len, hidden]``."""
        if self.prompt_embeddings is None:
            return None, None
        prefix = self.blocks.embed_prompts(self.prompt_embeddings.weight)
        if self.intermediate_prompt_embeddings is None:
            return prefix, None
        deep = self.intermediate_prompt_embeddings.weight  # [pre_seq_len, n_blocks * hidden]
        return prefix, deep.view(len(deep), self.blocks.n_blocks, self.blocks.hidden_size).transpose(0, 1)

    def _padding(self, input_ids: Tensor) -> Tensor | None:
        pad = self.config.pad_token_id
        if pad is None:
            return None
        # True up to the last token that is no padding.
        mask: Tensor = (input_ids != pad).long().flip(1).cummax(1).values.flip(1)
        return mask

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            if self.config.num_labels == 1:
                kind = "regression"
            else:
                whole = labels.dtype in (torch.long, torch.int)
                kind = "single_label_classification" if whole else "multi_label_classification"
        if kind == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view_as(logits.squeeze(-1)))
        if kind == "single_label_classification":
            return functional.cross_entropy(logits, labels.long().view(-1))
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class AutoDistributedModelForSequenceClassification:
    """Factory with the interface of Petals."""

    @classmethod
    def from_pretrained(
        cls,
        model: Union[str, os.PathLike[str], Mapping[str, Any]],
        *,
        num_labels: int = 2,
        pre_seq_len: int = 0,
        tuning_mode: str | None = None,
        initial_peers: Sequence[str] | None = None,
        swarm: Swarm = None,
    ) -> DistributedModelForSequenceClassification:
        """Connect to the blocks of ``model`` and return it with new prompts and a new head.

        ``model`` and ``swarm`` are those of :class:`sepal.RemoteBlocks`; a name ``OWNER/NAME`` that is no path is one of the
        hub. ``initial_peers`` lists addresses of servers, ``HOST:PORT``.
        """
        if initial_peers is not None:
            foreign = [peer for peer in initial_peers if peer.startswith("/")]
            if foreign:
                raise ValueError(f"{foreign[0]} is an address of Petals; give HOST:PORT of servers that `sepal serve` started")
            if swarm is not None:
                raise TypeError("initial_peers and swarm both name servers; give one of them")
            swarm = list(initial_peers)
        if isinstance(model, str) and ":" not in model and model.count("/") == 1 and not os.path.exists(model):
            model = f"hub:{model}"
        return DistributedModelForSequenceClassification(RemoteBlocks(model, swarm), num_labels, pre_seq_len, tuning_mode)
