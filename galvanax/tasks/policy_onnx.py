"""An `ActorCritic`'s policy as an ONNX graph.

Written by hand with ONNX's own package, since no converter from JAX runs beside what Galvanax needs: jax2onnx from
0.13.1 on wants an older orbax-checkpoint, and its versions up to 0.17.1 fail under jax 0.11 and 0.12. A policy is a few
kinds of nodes, and a graph without shape arithmetic and of an old opset runs on the onnxruntime of an old robot too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from galvanax.networks.actor_critic import ActorCritic, RunningNormalizer, observed_size
from galvanax.networks.depth_encoder import KERNEL, PADDING, STRIDE, Convolution, DepthEncoder
from galvanax.networks.mlp import ACTIVATIONS, MLP

# Opset 17 and format 8 are of 2022: onnxruntime 1.12 reads them.
OPSET, FORMAT = 17, 8


class _Graph:
    """Nodes and constants, in the order in which they are made. Values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: Any, name: str) -> str:
        """Adds float32 numbers."""
        self.constants.append(numpy_helper.from_array(np.array(array, np.float32), name))
        return name

    def integers(self, array: Any, name: str) -> str:
        """Adds int64 numbers: axes, and shapes."""
        self.constants.append(numpy_helper.from_array(np.array(array, np.int64), name))
        return name

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output."""
        return self.split(op, *inputs, outputs=[output or f"{op.lower()}_{len(self.nodes)}"], **attributes)[0]

    def split(self, op: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Adds a node with several outputs."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return outputs


def _clip(low: float, high: float) -> Callable[[_Graph, str], str]:
    def add(graph: _Graph, x: str) -> str:
        at = len(graph.nodes)
        return graph("Clip", x, graph.constant(low, f"low_{at}"), graph.constant(high, f"high_{at}"))

    return add


def _gelu(graph: _Graph, x: str) -> str:
    # The approximation by tanh, which is flax's; ONNX has it from opset 20 on.
    at = len(graph.nodes)
    half, one, cubic, root = (
        graph.constant(value, f"gelu_{name}_{at}")
        for name, value in (("half", 0.5), ("one", 1.0), ("cubic", 0.044715), ("root", np.sqrt(2 / np.pi)))
    )
    cube = graph("Mul", graph("Mul", graph("Mul", x, x), x), cubic)
    curve = graph("Tanh", graph("Mul", graph("Add", x, cube), root))
    return graph("Mul", x, graph("Mul", graph("Add", curve, one), half))


def _node(op: str, **attributes: Any) -> Callable[[_Graph, str], str]:
    return lambda graph, x: graph(op, x, **attributes)


def _swish(graph: _Graph, x: str) -> str:
    return graph("Mul", x, graph("Sigmoid", x))


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "celu": _node("Celu"),
    "elu": _node("Elu"),
    "gelu": _gelu,
    "hard_sigmoid": _node("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": _node("HardSwish"),
    "hard_swish": _node("HardSwish"),
    "hard_tanh": _clip(-1, 1),
    "identity": _node("Identity"),
    "leaky_relu": _node("LeakyRelu", alpha=0.01),
    "log_sigmoid": lambda graph, x: graph("Neg", graph("Softplus", graph("Neg", x))),
    "relu": _node("Relu"),
    "relu6": _clip(0, 6),
    "selu": _node("Selu"),
    "sigmoid": _node("Sigmoid"),
    "silu": _swish,
    "soft_sign": _node("Softsign"),
    "softplus": _node("Softplus"),
    "swish": _swish,
    "tanh": _node("Tanh"),
}


def policy_graph(model: ActorCritic) -> onnx.ModelProto:
    """The deterministic policy, its normaliser included.

    Inputs are `obs` `(batch, observation)`; where the policy sees, `depth` `(batch, height, width)`; where it has a
    memory, `memory` `(batch, memory)`. Outputs are `action` `(batch, action)` and `memory_out`. All are float32, and
    the batch may have any size.
    """
    graph, features = _Graph(), "obs"
    inputs, outputs = [_array("obs", observed_size(model))], [_array("action", model.action_size)]
    if model.normalizer is not None:
        features = _normalize(graph, model.normalizer, features)
    if model.depth_encoder is not None:
        inputs.append(_array("depth", *model.depth_encoder.sight.shape))
        features = graph("Concat", features, _see(graph, model.depth_encoder, "depth"), axis=-1)
    if model.memory is not None:
        inputs.append(_array("memory", model.memory_size))
        outputs.append(_array("memory_out", model.memory_size))
    if model.memory is not None:
        features = _remember(graph, model.memory, features, "memory", "memory_out")
    squashed = model.log_std is None
    # Of tanh_normal's outputs the second half are deviations, which play no part.
    mean = _mlp(graph, model.policy, features, model.action_size, "mean" if squashed else "action")
    if squashed:
        graph("Tanh", mean, output="action")
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=FORMAT,
        producer_name="galvanax",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _normalize(graph: _Graph, normalizer: RunningNormalizer, x: str) -> str:
    # The same arithmetic as in `RunningNormalizer.__call__`, in float32 too.
    count, squares = (np.asarray(value[...], np.float32) for value in (normalizer.count, normalizer.squares))
    variance = squares / np.maximum(count, 1) if count > 0 else np.ones_like(squares)
    mean = graph.constant(normalizer.mean[...], "observation_mean")
    std = graph.constant(np.sqrt(np.maximum(variance, np.float32(1e-6))), "observation_std")
    return _clip(-normalizer.limit, normalizer.limit)(graph, graph("Div", graph("Sub", x, mean), std))


def _remember(graph: _Graph, cell: nnx.GRUCell, x: str, memory: str, output: str) -> str:
    """flax's GRU: reset gate, update gate and candidate lie side by side in one matrix for each input."""
    of_input, of_memory = (
        graph.split("Split", projected, outputs=[f"{name}_{gate}" for gate in ("reset", "update", "new")], axis=-1)
        for name, projected in (
            ("input", _linear(graph, cell.dense_i, x, "memory_input")),
            ("memory", _linear(graph, cell.dense_h, memory, "memory_recurrent")),
        )
    )
    reset, update = (graph("Sigmoid", graph("Add", *pair)) for pair in zip(of_input[:2], of_memory[:2], strict=True))
    new = graph("Tanh", graph("Add", of_input[2], graph("Mul", reset, of_memory[2])))
    kept = graph("Mul", update, memory)
    fresh = graph("Mul", graph("Sub", graph.constant(1.0, "one"), update), new)
    return graph("Add", fresh, kept, output=output)


def _see(graph: _Graph, encoder: DepthEncoder, depth: str) -> str:
    """Depth (m) to features. ONNX has channels before pixels, the encoder behind them."""
    far, activate = graph.constant(encoder.sight.far, "depth_far"), _activation(encoder.activation)
    known = graph("Where", graph("IsNaN", depth), far, depth)
    scaled = _clip(0, 1)(graph, graph("Div", known, far))
    x = graph("Unsqueeze", scaled, graph.integers([1], "depth_channel"))
    for index, layer in enumerate(encoder.convolutions):
        x = activate(graph, _convolve(graph, layer, x, f"convolution_{index}"))
    flat = graph("Flatten", graph("Transpose", x, perm=[0, 2, 3, 1]), axis=1)
    return activate(graph, _linear(graph, encoder.dense, flat, "depth_features"))


def _convolve(graph: _Graph, layer: Convolution, x: str, name: str) -> str:
    kernel = graph.constant(jax.device_get(layer.kernel[...]).transpose(3, 2, 0, 1), f"{name}_kernel")
    bias = graph.constant(jax.device_get(layer.bias[...]), f"{name}_bias")
    return graph("Conv", x, kernel, bias, kernel_shape=[KERNEL, KERNEL], strides=[STRIDE, STRIDE], pads=[PADDING] * 4)


def _activation(function: Callable[..., Any]) -> Callable[[_Graph, str], str]:
    return _ACTIVATIONS[next(name for name in ACTIVATIONS if getattr(nnx, name) is function)]


def _mlp(graph: _Graph, mlp: MLP, x: str, columns: int, output: str) -> str:
    activate = _activation(mlp.activation)
    *hidden, last = mlp.layers
    for index, layer in enumerate(hidden):
        x = activate(graph, _linear(graph, layer, x, f"layer_{index}"))
    return _linear(graph, last, x, f"layer_{len(hidden)}", columns, output)


def _linear(graph: _Graph, layer: nnx.Linear, x: str, name: str, columns: int | None = None, output: str = "") -> str:
    """A dense layer, or its first columns."""
    kernel = graph.constant(jax.device_get(layer.kernel[...])[:, :columns], f"{name}_kernel")
    if layer.bias is None:
        return graph("MatMul", x, kernel, output=output)
    return graph(
        "Gemm", x, kernel, graph.constant(jax.device_get(layer.bias[...])[:columns], f"{name}_bias"), output=output
    )


def _array(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
