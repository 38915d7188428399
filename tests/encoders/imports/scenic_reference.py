"""Scenic's ViViT in numpy, for models without a reference file.

Checked against the reference files in test_from_scenic.py before it is a reference itself.
"""

import numpy as np

EPS = 1e-6


def random_params(config, video_shape, num_classes, seed=0):
    """Return random parameters with Scenic's names and shapes."""
    rng = np.random.default_rng(seed)
    params = {}

    def add(name, *shape):
        params[name] = rng.normal(size=shape) * 0.3

    def dense(name, inputs, outputs):
        add(f"{name}/kernel", inputs, outputs)
        add(f"{name}/bias", outputs)

    def norm(name):
        add(f"{name}/scale", width)
        add(f"{name}/bias", width)

    def attention(name, heads):
        for part in ("query", "key", "value"):
            add(f"{name}/{part}/kernel", width, heads, width // heads)
            add(f"{name}/{part}/bias", heads, width // heads)
        add(f"{name}/out/kernel", heads, width // heads, width)
        add(f"{name}/out/bias", width)

    def transformer(name, size, length):
        add(f"{name}/posembed_input/pos_embedding", 1, length, width)
        for index in range(size["num_layers"]):
            block = f"{name}/encoderblock_{index}"
            if kind == "factorized_self_attention_block":
                for axis in ("time", "space"):
                    norm(f"{block}/LayerNorm_{axis}")
                    attention(f"{block}/MultiHeadDotProductAttention_{axis}", size["num_heads"])
                norm(f"{block}/LayerNorm_mlp")
                mlp = f"{block}/MlpBlock"
            else:
                norm(f"{block}/LayerNorm_0")
                attention(f"{block}/MultiHeadDotProductAttention_0", size["num_heads"])
                norm(f"{block}/LayerNorm_1")
                mlp = f"{block}/MlpBlock_0"
            dense(f"{mlp}/Dense_0", width, size["mlp_dim"])
            dense(f"{mlp}/Dense_1", size["mlp_dim"], width)
        norm(f"{name}/encoder_norm")

    width, kind = config["hidden_size"], config["attention_config"]["type"]
    frames, height, breadth, channels = video_shape
    patch = config["patches"]["size"]
    if config["temporal_encoding_config"]["method"] == "temporal_sampling":
        add("embedding/kernel", *patch, channels, width)
        steps = len(sampled(frames, config["temporal_encoding_config"]["n_sampled_frames"]))
    else:
        add("embedding/kernel", patch[2], *patch[:2], channels, width)
        steps = frames // patch[2]
    add("embedding/bias", width)
    places = (height // patch[0]) * (breadth // patch[1])
    token = int(config["classifier"] == "token")
    if kind == "factorized_encoder":
        transformer("SpatialTransformer", config["spatial_transformer"], places + token)
        if token:
            add("cls_SpatialTransformer", 1, 1, width)
        if not config["attention_config"].get("spatial_only_baseline"):
            transformer("TemporalTransformer", config["temporal_transformer"], steps + token)
            if token:
                add("cls_TemporalTransformer", 1, 1, width)
    else:
        transformer("Transformer", config, steps * places + token)
        if token:
            add("cls", 1, 1, width)
    if config.get("representation_size"):
        dense("pre_logits", width, config["representation_size"])
    if num_classes:
        dense("output_projection", config.get("representation_size") or width, num_classes)
    return params


def scenic_vivit(params, config, video):
    """Return prelogits and logits of videos (B, T, H, W, C); logits are None without a projection."""
    kind, classifier = config["attention_config"]["type"], config["classifier"]
    tokens = embed(params, config, video)  # (B, t, h·w, d)
    batch, steps, places, width = tokens.shape
    if kind == "factorized_encoder":
        frames = tokens.reshape(batch * steps, places, width)
        x = body(params, "SpatialTransformer", config, config["spatial_transformer"], frames)
        x = x.reshape(batch, steps, width)
        if config["attention_config"].get("spatial_only_baseline"):
            x = x.mean(1)
        else:
            x = body(params, "TemporalTransformer", config, config["temporal_transformer"], x)
    else:
        x = tokens.reshape(batch, steps * places, width)
        if classifier == "token":
            x = np.concatenate([np.tile(params["cls"], (batch, 1, 1)), x], axis=1)
        x = pool(encoder(params, "Transformer", config, config, x, steps), classifier)
    if config.get("representation_size"):
        x = np.tanh(dense(params, "pre_logits", x))
    head = "output_projection"
    return x, dense(params, head, x) if f"{head}/kernel" in params else None


def sampled(frames, count):
    """Return the indices of uniformly sampled frames."""
    if count >= frames:
        return np.arange(frames)
    step = frames / (count + 1)
    return np.minimum(np.round(np.arange(step, frames, step)).astype(int), frames - 1)


def embed(params, config, video):
    """Return tokens as sums over the pixels of explicit patches, weighted by the kernel."""
    kernel, bias = params["embedding/kernel"], params["embedding/bias"]
    if kernel.ndim == 4:
        count = config["temporal_encoding_config"]["n_sampled_frames"]
        video, kernel = video[:, sampled(video.shape[1], count)], kernel[None]
    t, h, w = kernel.shape[:3]
    steps, rows, columns = (
        size // part for size, part in zip(video.shape[1:4], (t, h, w), strict=True)
    )
    tokens = np.empty((len(video), steps, rows * columns, kernel.shape[-1]))
    for i in range(steps):
        for j in range(rows):
            for k in range(columns):
                patch = video[:, i * t : i * t + t, j * h : j * h + h, k * w : k * w + w]
                place = j * columns + k
                tokens[:, i, place] = np.einsum("bthwc,thwcd->bd", patch, kernel) + bias
    return tokens


def body(params, name, config, size, x):
    """Apply one of Model 2's transformers: class token, encoder, pooling."""
    if config["classifier"] == "token":
        x = np.concatenate([np.tile(params[f"cls_{name}"], (len(x), 1, 1)), x], axis=1)
    return pool(encoder(params, name, config, size, x, None), config["classifier"])


def pool(x, classifier):
    if classifier in ("token", "0"):
        return x[:, 0]
    return {"gap": np.mean, "gmp": np.max, "gsp": np.sum}[classifier](x, axis=1)


def encoder(params, name, config, size, x, steps):
    kind = config["attention_config"]["type"]
    x = x + params[f"{name}/posembed_input/pos_embedding"]
    for index in range(size["num_layers"]):
        block = f"{name}/encoderblock_{index}"
        if kind == "factorized_self_attention_block":
            for axis in config["attention_config"]["attention_order"].split("_"):
                x = x + over_axis(params, block, axis, x, steps)
            mlp, before = f"{block}/MlpBlock", f"{block}/LayerNorm_mlp"
        else:
            normed = layer_norm(params, f"{block}/LayerNorm_0", x)
            attention = f"{block}/MultiHeadDotProductAttention_0"
            half = kind == "factorized_dot_product_attention"
            x = x + attend(params, attention, normed, steps if half else None)
            mlp, before = f"{block}/MlpBlock_0", f"{block}/LayerNorm_1"
        hidden = gelu(dense(params, f"{mlp}/Dense_0", layer_norm(params, before, x)))
        x = x + dense(params, f"{mlp}/Dense_1", hidden)
    return layer_norm(params, f"{name}/encoder_norm", x)


def over_axis(params, block, axis, x, steps):
    """Apply Model 3's attention along one axis of (B, t·n, d)."""
    batch, length, width = x.shape
    grid = x.reshape(batch, steps, length // steps, width)
    if axis == "time":
        grid = grid.transpose(0, 2, 1, 3)
    flat = grid.reshape(-1, grid.shape[2], width)
    name = f"{block}/MultiHeadDotProductAttention_{axis}"
    out = attend(params, name, layer_norm(params, f"{block}/LayerNorm_{axis}", flat))
    out = out.reshape(grid.shape)
    return (out.transpose(0, 2, 1, 3) if axis == "time" else out).reshape(x.shape)


def attend(params, name, x, steps=None):
    """Apply multi-head attention to (B, L, d); with ``steps``, half of the heads attend over time."""
    query, key, value = (
        np.einsum("bld,dhk->bhlk", x, params[f"{name}/{part}/kernel"])
        + params[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    logits = np.einsum("bhqk,bhlk->bhql", query, key) / np.sqrt(query.shape[-1])
    if steps is not None:
        length, heads = x.shape[1], query.shape[1]
        time, place = np.divmod(np.arange(length), length // steps)
        same_place = place[:, None] == place[None]
        same_time = time[:, None] == time[None]
        allowed = np.where(np.arange(heads)[:, None, None] < heads // 2, same_place, same_time)
        logits = np.where(allowed, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    out = np.einsum("bhql,bhlk->bqhk", weights, value)
    return (
        np.einsum("bqhk,hkd->bqd", out, params[f"{name}/out/kernel"]) + params[f"{name}/out/bias"]
    )


def dense(params, name, x):
    return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]


def layer_norm(params, name, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPS) * params[f"{name}/scale"] + params[f"{name}/bias"]


def gelu(x):
    """Apply the tanh approximation of GELU, flax's default."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
