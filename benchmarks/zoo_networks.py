"""Torch modules of the architectures in `zoo.py`, narrow, with random weights.

Those of `transformers` are built from their configurations; what it does not have is written out below.
Attention is "eager" where PyTorch 2.13 cannot export `scaled_dot_product_attention`: its decomposition takes
a wrong layout for the result.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan


class Tensors(nn.Module):
    """A model of `transformers` called by position, giving the named parts of its answer as a tuple."""

    def __init__(self, model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs, self.options = inputs, outputs, options

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Any:
        """The parts of the answer."""
        given = [value for value in (first, second, third) if value is not None]
        answer = self.model(**dict(zip(self.inputs, given, strict=True)), **self.options)
        parts = tuple(answer[name] for name in self.outputs)
        return parts if len(parts) > 1 else parts[0]


_NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGE = {"image_size": 64, "num_labels": 10}


def t5() -> nn.Module:
    """T5: encoder and decoder with relative positions."""
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    return _sequences(transformers.T5ForConditionalGeneration(config))


def marian() -> nn.Module:
    """Marian: encoder and decoder for translation."""
    config = transformers.MarianConfig(
        vocab_size=96, decoder_vocab_size=96, max_position_embeddings=64, d_model=32, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, pad_token_id=0, decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    return _sequences(transformers.MarianMTModel(config))


def _sequences(model: Any) -> nn.Module:
    return Tensors(model, ("input_ids", "attention_mask", "decoder_input_ids"), ("logits",), use_cache=False)


def gpt2() -> nn.Module:
    """GPT-2: a decoder."""
    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return _tokens(transformers.GPT2LMHeadModel(config))


def llama() -> nn.Module:
    """Llama: RMS normalization, rotary positions, grouped queries."""
    config = transformers.LlamaConfig(
        vocab_size=96, num_key_value_heads=2, max_position_embeddings=64, **_NARROW
    )
    return _tokens(transformers.LlamaForCausalLM(config))


def mamba() -> nn.Module:
    """Mamba: a selective scan in place of attention."""
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    return Tensors(transformers.MambaForCausalLM(config), ("input_ids",), ("logits",), use_cache=False)


def _tokens(model: Any) -> nn.Module:
    return Tensors(model, ("input_ids", "attention_mask"), ("logits",), use_cache=False)


def vit() -> nn.Module:
    """ViT: a transformer over patches."""
    config = transformers.ViTConfig(patch_size=16, **_NARROW, **_IMAGE)
    return _classes(transformers.ViTForImageClassification(config))


def swin() -> nn.Module:
    """Swin: attention in shifted windows."""
    config = transformers.SwinConfig(
        patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        attn_implementation="eager", **_IMAGE,
    )  # fmt: skip
    return _classes(transformers.SwinForImageClassification(config))


def convnext() -> nn.Module:
    """ConvNeXt: depthwise 7x7 convolutions and layer normalization over channels."""
    config = transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=10)
    return _classes(transformers.ConvNextForImageClassification(config))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 as TensorFlow pads it."""
    config = transformers.MobileNetV2Config(image_size=64, depth_multiplier=0.35, num_labels=10)
    return _classes(transformers.MobileNetV2ForImageClassification(config))


def efficientnet() -> nn.Module:
    """EfficientNet with squeeze and excitation."""
    config = transformers.EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=10
    )
    return _classes(transformers.EfficientNetForImageClassification(config))


def _classes(model: Any) -> nn.Module:
    return Tensors(model, ("pixel_values",), ("logits",))


def segformer() -> nn.Module:
    """SegFormer: a hierarchy of transformers, and a head that resizes and joins their maps."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=5,
    )  # fmt: skip
    return Tensors(transformers.SegformerForSemanticSegmentation(config), ("pixel_values",), ("logits",))


def detr() -> nn.Module:
    """DETR: a convolutional backbone, and a transformer whose decoder asks for objects."""
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        num_queries=10, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_labels=5,
    )  # fmt: skip
    return Tensors(transformers.DetrForObjectDetection(config), ("pixel_values",), ("logits", "pred_boxes"))


def wav2vec2() -> nn.Module:
    """wav2vec 2.0: convolutions over a wave, grouped positions, a transformer, letters."""
    config = transformers.Wav2Vec2Config(
        vocab_size=20, conv_dim=[16, 16, 16], conv_stride=[5, 2, 2], conv_kernel=[10, 3, 2],
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_feat_extract_layers=3, **_NARROW,
    )  # fmt: skip
    return Tensors(transformers.Wav2Vec2ForCTC(config), ("input_values",), ("logits",))


class UNet(nn.Module):
    """U-Net: down, up by transposed convolution, joined across (Ronneberger and others, 2015)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._pair(i, o) for i, o in zip((3, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[::-1][:-1], widths[::-1][1:], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
        self.join = nn.ModuleList(self._pair(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(widths[0], 4, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """A class for each pixel: [batch, 3, height, width] to [batch, 4, height, width]."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
        return self.head(x)


class Yolo(nn.Module):
    """A one-stage detector without anchors: SiLU convolutions, two scales, boxes from distances to a grid."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(self._conv(3, 16, 2), self._conv(16, 32, 2), self._conv(32, 32, 2))
        self.deep = self._conv(32, 48, 2)
        self.heads = nn.ModuleList(nn.Conv2d(c, 4 + classes, 1) for c in (32 + 48, 48))

    @staticmethod
    def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [batch, cells, 4] as corners in pixels, and scores [batch, classes, cells]."""
        fine = self.stem(x)
        coarse = self.deep(fine)
        joined = torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        boxes, scores = [], []
        for level, (head, features) in enumerate(zip(self.heads, (joined, coarse), strict=True)):
            stride = 8 << level
            made = head(features).flatten(2)
            rows, columns = features.shape[2:]
            down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            centre = (torch.stack([right, down], -1).reshape(-1, 2) + 0.5) * stride
            near, far = (made[:, :4].transpose(1, 2).exp() * stride).chunk(2, dim=-1)
            boxes.append(torch.cat([centre - near, centre + far], -1))
            scores.append(made[:, 4:].sigmoid())
        return torch.cat(boxes, 1), torch.cat(scores, 2)


class Mixed(nn.Module):
    """The recommender DLRM: embeddings and a perceptron, all pairs multiplied (Naumov and others, 2019)."""

    def __init__(self, rows: tuple[int, ...] = (50, 30, 80), width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in rows)
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        count = len(rows) + 1
        self.register_buffer("pairs", torch.tril_indices(count, count, -1), persistent=False)
        self.top = nn.Sequential(
            nn.Linear(width + count * (count - 1) // 2, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid()
        )

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Numbers [batch, 13] and categories [batch, 3] to a probability [batch, 1]."""
        low = self.bottom(dense)
        vectors = torch.stack([low, *(t(sparse[:, i]) for i, t in enumerate(self.tables))], dim=1)
        products = vectors @ vectors.transpose(1, 2)
        rows, columns = self.pairs  # type: ignore[misc]
        return self.top(torch.cat([low, products[:, rows, columns]], dim=1))


class TwoTowers(nn.Module):
    """Two towers: a user's history, averaged where it is not padding, against items; the best of them."""

    def __init__(self, items: int = 60, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(items, width, padding_idx=0)
        self.user = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.item = nn.Linear(width, width)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Histories [batch, tokens], 0 for padding, to the five best items and their scores [batch, 5]."""
        shown = (history != 0).unsqueeze(-1)
        mean = (self.table(history) * shown).sum(1) / shown.sum(1).clamp(min=1)
        user = nn.functional.normalize(self.user(mean), dim=-1)
        item = nn.functional.normalize(self.item(self.table.weight), dim=-1)
        scores, best = (user @ item.T).topk(5, dim=-1)
        return scores, best


class Tagger(nn.Module):
    """A tagger of the older kind: embeddings, an LSTM in both directions, a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 24)
        self.lstm = nn.LSTM(24, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, tokens] to classes [batch, tokens, 7]."""
        return self.head(self.lstm(self.table(tokens))[0])


class SelectiveScan(nn.Module):
    """The layer of Mamba as it is defined, with its scan left as one (Gu and Dao, 2023)."""

    def __init__(self, words: int = 60, width: int = 32, states: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.step = nn.Linear(width, width)
        self.gates = nn.Linear(width, 2 * states)
        self.decay = nn.Parameter(torch.randn(width, states))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, tokens] to scores of the next one [batch, tokens, words]."""
        x = self.table(tokens)
        step = nn.functional.softplus(self.step(x))
        into, out = self.gates(x).chunk(2, -1)
        rate = -self.decay.exp()

        def one(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            x, step, into, out = now
            kept = torch.exp(step.unsqueeze(-1) * rate) * state
            state = kept + (step * x).unsqueeze(-1) * into.unsqueeze(1)
            return state, (state * out.unsqueeze(1)).sum(-1)

        start = x[:, 0, :, None] * torch.zeros(self.decay.shape[1])
        _, y = scan(one, start, tuple(t.transpose(0, 1) for t in (x, step, into, out)))
        return self.head(y.transpose(0, 1))


class Gate(nn.Module):
    """Two networks of different depth, of which the input chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.quick = nn.Linear(13, 4)
        self.thorough = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Numbers [batch, 13] and categories [batch, 3] to scores [batch, 4]."""
        easy = dense.mean() + sparse.sum() % 2 > 0.5
        return torch.cond(easy, lambda x: self.quick(x).tanh(), self.thorough, (dense,))


class Writer(nn.Module):
    """A decoder that writes one token after the other, the likeliest, with a cache of what it attended to."""

    def __init__(self, words: int = 60, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.query = nn.Linear(width, width)
        self.cell = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [batch, tokens] to those that follow, until all texts end, and to their cache."""
        token = tokens[:, -1:]
        cache = self.table(tokens)
        written = tokens[:, :0]
        going = True
        steps = 0
        while going:
            now = self.table(token)
            weights = torch.softmax(torch.matmul(self.query(now), cache.transpose(1, 2)), dim=-1)
            seen = torch.matmul(weights, cache)
            made = torch.tanh(self.cell(torch.cat([now, seen], dim=2)))
            token = torch.argmax(self.head(made), dim=2)
            written = torch.cat([written, token], dim=1)
            cache = torch.cat([cache, made], dim=1)
            steps += 1
            going = steps < 20 and bool(torch.any(token > 5))
        return written, cache


class Decoder(nn.Module):
    """A decoder with its cache: one file for the first step and those that follow, as Optimum merges them."""

    def __init__(self, words: int = 60, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, words)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def _decode(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(tokens)
        y = self.norm(x)
        query, key, value = self._heads(self.query(y)), self._heads(self.key(y)), self._heads(self.value(y))
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = torch.matmul(query, key.transpose(2, 3)) / key.shape[3] ** 0.5
        place = torch.arange(key.shape[2])
        later = place.unsqueeze(0) > (place[key.shape[2] - tokens.shape[1] :]).unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(later, -1e9), dim=-1)
        seen = torch.matmul(weights, value).transpose(1, 2).reshape(x.shape)
        x = x + self.out(seen)
        x = x + self.narrow(nn.functional.gelu(self.wide(x)))
        return self.head(x), torch.stack([key, value])

    def forward(self, tokens: Tensor, past: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the next token after each, and the cache.

        Args:
            tokens: [batch, tokens].
            past: keys and values of what was read before, [2, batch, heads, past, size of a head].
            again: whether there is a past; what stands in `past` without one does not matter.
        """
        if bool(again):
            scores, cache = self._decode(tokens, past)
        else:
            scores, cache = self._decode(tokens, past[:, :, :, :0])
        return scores, cache


class Stepped(nn.Module):
    """An LSTM that goes through its steps in a loop of Python, as many research models do."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.table = nn.Embedding(60, width)
        self.into = nn.Linear(width, 4 * width)
        self.again = nn.Linear(width, 4 * width)
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, tokens] to classes [batch, tokens, 7]."""
        x = self.table(tokens)
        classes = self.head(x)[:, :0]
        state = torch.zeros_like(x[:, 0])
        cell = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            keep, take, new, show = torch.chunk(self.into(x[:, step]) + self.again(state), 4, dim=1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(take) * torch.tanh(new)
            state = torch.sigmoid(show) * torch.tanh(cell)
            classes = torch.cat([classes, self.head(state).unsqueeze(1)], dim=1)
        return classes


def spread(model: nn.Module) -> nn.Module:
    """The model with statistics as after training: those of a new one, 0 and 1, hide what folds them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()
