"""A Hugging Face folder's safetensors as the engine's weights."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.engine.torch.model.architecture import Architecture
from app.engine.torch.model.decoder import DecoderWeights, LayerWeights
from app.errors import ModelNotFoundError, UnsupportedModelError
from kernels.interface import Kernels, Linear


def load_weights(
    model_dir: Path,
    architecture: Architecture,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
) -> DecoderWeights:
    """The weights in `model.safetensors`, or in the shards that its index names.

    Raises:
        ModelNotFoundError: no weights file, or not all shards.
        UnsupportedModelError: a tensor is missing, unreadable, of another shape than `config.json` says, or
            one that the model here has no use for.
    """
    with ExitStack() as stack:
        checkpoint = _Checkpoint(model_dir, device, dtype, stack)
        weights = _Loader(architecture, kernels, checkpoint).load()
        checkpoint.check_all_read()
    return weights


class _Checkpoint:
    """The tensors of a folder by name, whichever shard holds them."""

    def __init__(self, model_dir: Path, device: torch.device, dtype: torch.dtype, stack: ExitStack) -> None:
        self._model_dir = model_dir
        self._device = device
        self._dtype = dtype
        self._file_of: dict[str, Any] = {}
        for path in _weight_files(model_dir):
            try:
                file = stack.enter_context(safe_open(path, framework="pt", device=str(device)))
            except SafetensorError as error:
                raise UnsupportedModelError(f"{path}: not a readable safetensors file: {error}") from None
            self._file_of.update(dict.fromkeys(file.keys(), file))
        self._unread = set(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The tensor `name` on the device."""
        if name not in self._file_of:
            raise UnsupportedModelError(f"{self._model_dir}: no tensor {name} in its safetensors files")
        tensor: Tensor = self._file_of[name].get_tensor(name)
        if tensor.shape != shape:
            raise UnsupportedModelError(
                f"{self._model_dir}: {name} has shape {list(tensor.shape)}; config.json says {list(shape)}"
            )
        self._unread.discard(name)
        return tensor.to(self._device, self._dtype)

    def check_all_read(self) -> None:
        """Refuse a checkpoint with tensors of some feature that would be left out in silence."""
        # Old checkpoints hold the rotations' frequencies, which config.json gives too.
        unread = sorted(name for name in self._unread if not name.endswith(".rotary_emb.inv_freq"))
        if unread:
            raise UnsupportedModelError(
                f"{self._model_dir}: {len(unread)} tensors belong to nothing that config.json and its family "
                f"have here, such as {unread[0]}"
            )


class _Loader:
    """Names and shapes of a decoder's tensors."""

    def __init__(self, architecture: Architecture, kernels: Kernels, checkpoint: _Checkpoint) -> None:
        self._arch = architecture
        self._kernels = kernels
        self._checkpoint = checkpoint

    def load(self) -> DecoderWeights:
        arch = self._arch
        embedding = self._checkpoint.tensor("model.embed_tokens.weight", arch.vocab_size, arch.hidden_size)
        layers = tuple(self._layer(f"model.layers.{index}") for index in range(arch.num_hidden_layers))
        norm = self._checkpoint.tensor("model.norm.weight", arch.hidden_size)
        return DecoderWeights(embedding, layers, norm, self._kernels.pack_linear(self._head(embedding)))

    def _head(self, embedding: Tensor) -> Tensor:
        """A head of its own wins over `tie_word_embeddings`, as in transformers."""
        if self._arch.tie_word_embeddings and "lm_head.weight" not in self._checkpoint:
            return embedding
        head = self._checkpoint.tensor("lm_head.weight", *embedding.shape)
        return embedding if torch.equal(head, embedding) else head

    def _layer(self, prefix: str) -> LayerWeights:
        arch = self._arch
        hidden, inner = arch.hidden_size, arch.intermediate_size
        query = arch.num_attention_heads * arch.head_dim
        kv = arch.num_key_value_heads * arch.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = {f"{attention}.q_proj": query, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv}
        gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
        return LayerWeights(
            attention_norm=self._checkpoint.tensor(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self._linear(qkv, hidden, arch.qkv_bias),
            query_norm=self._head_norm(f"{attention}.q_norm"),
            key_norm=self._head_norm(f"{attention}.k_norm"),
            output=self._linear({f"{attention}.o_proj": hidden}, query, arch.output_bias),
            mlp_norm=self._checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
            gated=self._kernels.pack_gated_linear(*self._joined(gate_up, hidden, arch.mlp_bias)),
            down=self._linear({f"{mlp}.down_proj": hidden}, inner, arch.mlp_bias),
        )

    def _head_norm(self, name: str) -> Tensor | None:
        return self._checkpoint.tensor(f"{name}.weight", self._arch.head_dim) if self._arch.qk_norm else None

    def _linear(self, outputs: dict[str, int], num_inputs: int, has_bias: bool) -> Linear:
        return self._kernels.pack_linear(*self._joined(outputs, num_inputs, has_bias))

    def _joined(
        self, outputs: dict[str, int], num_inputs: int, has_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of layers that read the same input, given as name to number of outputs, as one."""
        tensor = self._checkpoint.tensor
        weight = torch.cat([tensor(f"{name}.weight", size, num_inputs) for name, size in outputs.items()])
        bias = None
        if has_bias:
            bias = torch.cat([tensor(f"{name}.bias", size) for name, size in outputs.items()])
        return weight, bias


def _weight_files(model_dir: Path) -> list[Path]:
    single, index = model_dir / "model.safetensors", model_dir / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelNotFoundError(f"{model_dir}: neither {single.name} nor {index.name} is there")
    paths = [model_dir / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ModelNotFoundError(f"{model_dir}: {index.name} names {', '.join(missing)}, not there")
    return paths
