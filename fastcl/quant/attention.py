"""``nn.MultiheadAttention`` with its projections as layers of their own, which can be swapped for int8 ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """The function of an ``nn.MultiheadAttention``, with ``in_proj`` and ``out_proj`` called as modules.

    ``nn.MultiheadAttention`` reads its projections as tensors, so that no other layer can stand in their place.

    Attributes:
        in_proj: [embed_dim] → [3 * embed_dim]: query, key and value.
        out_proj: [embed_dim] → [embed_dim].
    """

    in_proj_bias = None  # nn.TransformerEncoderLayer then calls this module rather than a kernel on its tensors

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Takes over the tensors of ``attention``, which must pass :meth:`why_not`."""
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self._qkv_same_embed_dim = True  # read by nn.TransformerEncoder
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self.in_proj = nn.Linear(self.embed_dim, 3 * self.embed_dim, bias is not None, device="meta")
        self.in_proj.weight, self.in_proj.bias = weight, bias
        out = attention.out_proj
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, out.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = out.weight, out.bias
        self.train(attention.training)

    @staticmethod
    def why_not(attention: nn.MultiheadAttention) -> str | None:
        """Why an attention cannot be rebuilt, or None."""
        if not attention._qkv_same_embed_dim:
            return "its keys or values have another width than its queries"
        if attention.bias_k is not None or attention.add_zero_attn:
            return "it adds keys of its own"
        return None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``nn.MultiheadAttention.forward``: the same arguments and results."""
        itself = query is key and key is value
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(0 if self.batch_first else 1) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
        if itself:
            q, k, v = self.in_proj(query).chunk(3, dim=-1)
        else:  # each input through the whole projection: one layer, at the cost of parts that are not used
            q, projected = self.in_proj(query).chunk(3, dim=-1)[0], self.in_proj(key).chunk(3, dim=-1)
            k, v = projected[1], projected[2] if value is key else self.in_proj(value).chunk(3, dim=-1)[2]
        q, k, v = (tensor.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for tensor in (q, k, v))

        mask = _additive(attn_mask, q.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.view(batch, self.num_heads, queries, keys)
        padding = _additive(key_padding_mask, q.dtype)
        if padding is not None:
            padding = padding.view(batch, 1, 1, keys)
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            heads = weights @ v
        else:
            causal = is_causal and mask is None
            heads = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        y = self.out_proj(heads.transpose(1, 2).flatten(2))
        y = y if self.batch_first else y.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            y = y.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return y, weights


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that is added to the scores; a boolean one is True where attention is not allowed."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
