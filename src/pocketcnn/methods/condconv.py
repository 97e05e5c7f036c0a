"""CondConv: every image is convolved with its own mixture of a few expert kernels.

A router (global average pool, linear layer, sigmoid) looks at the layer's input and weighs the experts. Mixing kernels
instead of outputs costs one convolution, however many experts there are. CondConv gains accuracy for
few multiply-adds, at the price of bytes: all experts are stored.

Source: Yang, Bender, Le, Ngiam: CondConv: Conditionally Parameterized Convolutions for Efficient Inference,
NeurIPS 2019 (arXiv 1904.04971). Each expert is initialised as a layer of its own (not the stacked_kernels tensor as one).
The router's initialisation is open in the paper: ours is a linear layer's, with zero bias, so routing starts near 1/2.
The layers of a block can share one routing, made from the block's input, as in the authors' nets.
"""

import dataclasses
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.errors import NotEnoughMemory
from pocketcnn.methods._blocks import block_of
from pocketcnn.methods._call_value import CallValue, fingerprint, is_repeatable, repeating, tracing
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._leaf import AbstractLeaf, proxy_in
from pocketcnn.methods._method import Method, Range, Site
from pocketcnn.methods._shared import AbstractShared
from pocketcnn.methods._sites import conv_sites
from pocketcnn.numerics._shapes import Pair
from pocketcnn.numerics.condconv import COMPUTATIONS
from pocketcnn.support.memory import machine_memory

_APART = 0.1  # standard deviation of the experts' differences after a fit, as a share of the kernel's
Activation = Literal["sigmoid", "softmax"]
Routing = Literal["layer", "block"]
Computation = Literal["auto", "mix_kernels", "mix_outputs", "unfold"]


@dataclass(frozen=True)
class CondConvOptions:
    """Number of kernels mixed, layers that mix them, and the router that decides the mixture."""

    num_experts: int = 4
    """Number of kernels that each layer stores and mixes for every image."""
    last: float = 1.0
    """Share of the layers to replace, in (0, 1], counted from the last layer."""
    routing: Routing = "layer"
    """A router for each "layer", or one for all layers of a "block" that looks at the block's input."""
    activation: Activation = "sigmoid"
    """Function that turns the router's outputs into weights: "sigmoid" each by itself, "softmax" so that they sum to 1."""
    temperature: float = 1.0
    """Divisor of the router's outputs before a softmax; higher mixes more evenly."""
    dropout: float = 0.0
    """Share of the routing weights that training drops."""
    computation: Computation = "auto"
    """One of several ways to compute the same; auto chooses by shape."""

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")
        if not 0 < self.last <= 1:
            raise ValueError(f"last is a share of the layers, in (0, 1], not {self.last}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if self.temperature != 1 and self.activation != "softmax":
            raise ValueError(f"a temperature belongs to activation='softmax', not {self.activation!r}")
        for name, known in (("routing", get_args(Routing)), ("activation", get_args(Activation)),
                            ("computation", COMPUTATIONS)):  # fmt: skip
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"no {name} {value!r}; known: {', '.join(known)}")


class _Routing(NamedTuple):
    """The experts' weights for a block's batch, the block's input, and the version that the input had."""

    weights: Tensor
    x: Tensor
    version: int


class _Debt:
    """Gradients of a block's routing from a part of the block that a reentrant checkpoint repeats.

    Such a checkpoint passes on the gradients of its arguments alone, and the routing is none. So they are collected while
    it repeats its part, and paid to the router, and to the block's input, when autograd comes to that input.
    """

    def __init__(self, router: "Router", weights: Tensor, x: Tensor) -> None:
        self._owed: Tensor | None = None
        with torch.enable_grad():
            self._x = x.detach().requires_grad_(x.requires_grad)
            again = router.weigh(self._x)
            kept = (weights / again).detach().nan_to_num() if router.dropout and router.training else 1  # by dropout
            self._weights = again * kept
        if x.requires_grad:
            x.register_hook(self._pay)

    def collect(self, grad: Tensor) -> None:
        """Takes the gradients of the weights from one repetition."""
        self._owed = grad if self._owed is None else self._owed + grad
        if not self._x.requires_grad:
            self._pay(grad)

    def _pay(self, grad: Tensor) -> Tensor:
        if self._owed is None:
            return grad
        torch.autograd.backward(self._weights, self._owed.to(self._weights), retain_graph=True)
        self._owed = None
        if self._x.grad is not None:
            grad, self._x.grad = grad + self._x.grad, None
        return grad


class Router(AbstractLeaf, AbstractShared, nn.Linear):
    """Looks at an image and weighs the experts for it.

    Args:
        in_channels: channels of the image.
        num_experts: number of weights for an image.
        activation: `"sigmoid"` or `"softmax"`.
        temperature: of the softmax.
        dropout: share of the weights that training drops; the others grow to make up for it.
        device: as in `nn.Linear`; so is `dtype`.
        dtype: of the parameters.
    """

    _inputs: tuple[str, ...] = ()  # names of the inputs of the block that is watched

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        activation: str = "sigmoid",
        temperature: float = 1.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, num_experts, device=device, dtype=dtype)
        self.activation, self.temperature, self.dropout = activation, temperature, dropout
        self.block = ""  # name of the block that this router looks at; empty for the router of one layer
        self._of_block = CallValue()  # weights for the batch that the block is working on

    def reset_parameters(self) -> None:
        """Draws the weights as `nn.Linear` does; the bias is 0."""
        super().reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_experts"]:
        weights = self.weigh(x)
        return F.dropout(weights, self.dropout, self.training) if self.dropout else weights

    def weigh(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_experts"]:
        """Weighs the experts for each image, without dropout."""
        logits = super().forward(x.mean(dim=(2, 3)))
        return logits.sigmoid() if self.activation == "sigmoid" else (logits / self.temperature).softmax(dim=1)

    def watch(self, block: nn.Module) -> None:
        """Makes every call of a block begin with a look at the block's input, for the layers in it."""
        self._inputs = tuple(inspect.signature(block.forward).parameters)
        block.register_forward_pre_hook(self._look, with_kwargs=True)
        block.register_forward_hook(self._forget, always_call=True)

    def _look(
        self, block: nn.Module, arguments: tuple[Any, ...], by_keyword: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._of_block.clear()  # left by a call that failed
        names = self._inputs
        named = sorted(by_keyword, key=lambda name: names.index(name) if name in names else len(names))
        given = (*arguments, *(by_keyword[name] for name in named))
        x = next((a for a in given if proxy_in(a) is not None or (isinstance(a, Tensor) and a.dim() == 4)), None)
        if x is None:
            raise ValueError(
                f"routing='block': {self.block} is given no images, [batch, channels, height, width], to look at; take "
                "routing='layer' there"
            )
        recorded = proxy_in(x) is not None
        if not recorded and x.shape[1] != self.in_features:
            raise ValueError(
                f"routing='block': {self.block} is given {x.shape[1]} channels, its first condensed layer {self.in_features}; "
                "take routing='layer' there"
            )
        version = x._version if torch.is_grad_enabled() and not (recorded or tracing()) else 0
        self._of_block.push(_Routing(self(x), x, version))

    def _forget(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._of_block.clear()

    def weights_of_block(self, x: Tensor) -> Tensor:
        """Returns the weights for the batch that the block is working on, for a layer in it that is given `x`.

        Raises:
            RuntimeError: the block is not being called; or activation checkpointing repeats a part of it in the form that
                has no way for the gradients of the weights, and the block has overwritten its input.
        """
        given = self._of_block.current()
        if given is None and repeating():
            weights, learns, debts = self._of_block.noted(x, f"the routing of {self.block}")
            weights = weights.detach().requires_grad_(learns)
            if debts is not None:
                # One for each call that looked the same; the newest is repeated first.
                owed = next((debt for debt in (debts.pop()() for _ in range(len(debts))) if debt is not None), None)
                if owed is None:
                    raise RuntimeError(
                        f"routing='block': the gradients of a checkpoint inside {self.block} would not reach its router; "
                        "take use_reentrant=False"
                    )
                weights.register_hook(owed.collect)
            return weights
        if given is None:
            raise RuntimeError(
                f"this layer takes its routing from its block, {self.block}, and works only while that is called"
            )
        weights = given.value.weights
        if is_repeatable(given):
            learns = weights.requires_grad
            mark, debts = fingerprint(weights), None
            if learns and not torch.is_grad_enabled():
                _, _, before = self._of_block.known(x, mark) or (None, None, None)
                debts = [*(before or ()), self._owe(*given.value)]
            self._of_block.note(x, (weights.detach(), learns, debts), mark)
        return weights

    def _owe(self, weights: Tensor, x: Tensor, version: int) -> Callable[[], "_Debt | None"]:
        """Prepares for gradients that autograd does not bring to the weights of this block."""
        if x._version != version:
            return lambda: None
        debt = _Debt(self, weights, x)
        # Where the graph holds it, it ends with the graph; else it holds no features.
        return weakref.ref(debt) if x.requires_grad else lambda: debt

    def extra_repr(self) -> str:
        options = CondConvOptions()
        names = [n for n in ("activation", "temperature", "dropout") if getattr(self, n) != getattr(options, n)]
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)])


class CondConv2d(AbstractConv2d):
    """A convolution with one kernel per image, mixed from experts; takes `nn.Conv2d`'s arguments.

    Args:
        in_channels: as in `nn.Conv2d`; so are the arguments up to `dtype`.
        out_channels: as in `nn.Conv2d`.
        kernel_size: as in `nn.Conv2d`.
        stride: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`.
        dilation: as in `nn.Conv2d`.
        groups: as in `nn.Conv2d`.
        bias: gives each expert a bias, mixed like its kernel.
        padding_mode: as in `nn.Conv2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.
        num_experts: number of kernels stored.
        activation: of the router, `"sigmoid"` or `"softmax"`.
        temperature: of the softmax.
        dropout: share of the routing weights that training drops.
        computation: see `pocketcnn.numerics.condconv2d`.
        router: a router that watches the block around the layer, and has its own activation, temperature and dropout; by
            default the layer makes its own router with those given here.
    Raises:
        ValueError: an argument out of range.
        NotEnoughMemory: the experts take more memory than the machine has.
    Cost: that of the convolution, and num_experts * (in_channels + weights of a kernel) multiply-adds an image.
    """

    condensed_by = "condconv"
    why_not_dense = "its kernel is mixed anew for every image"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_experts: int = CondConvOptions.num_experts,
        activation: Activation = CondConvOptions.activation,
        temperature: float = CondConvOptions.temperature,
        dropout: float = CondConvOptions.dropout,
        computation: Computation = CondConvOptions.computation,
        router: Router | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        CondConvOptions(
            num_experts, activation=activation, temperature=temperature, dropout=dropout, computation=computation
        )  # checks them
        self.num_experts, self.computation = num_experts, computation
        self.router_shared = router is not None
        if router is not None and router.out_features != num_experts:
            raise ValueError(f"the router weighs {router.out_features} experts, this layer has {num_experts}")
        # One row an expert: a five-dimensional parameter would break `model.to(memory_format=torch.channels_last)`.
        size = torch.Size(self.weight_shape).numel()
        check_memory([size], num_experts, device, dtype)
        self.experts = nn.Parameter(torch.empty(num_experts, size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_experts, out_channels, device=device, dtype=dtype)) if bias else None
        if router is None:
            router = Router(in_channels, num_experts, activation, temperature, dropout, device, dtype)
        self.router = router
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws each expert as a Kaiming fan-out layer of its own and the router as a linear layer; biases are 0."""
        nn.init.normal_(self.experts, std=(2 / fan_out(self.weight_shape, self.groups)) ** 0.5)
        if not self.router_shared:
            self.router.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def stacked_kernels(self) -> dict[str, tuple[int, ...]]:
        """The experts are kernels, one a row."""
        return {"experts": (self.num_experts, *self.weight_shape)}

    def routing_weights(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_experts"]:
        """Weighs the experts for each image, by the layer's input or, with a shared router, by the block's."""
        return self.router.weights_of_block(x) if self.router_shared else self.router(x)

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """Mixes the kernel of each image, [batch, out_channels, in_channels // groups, kernel_height, kernel_width].

        Raises:
            ValueError: no `x`: without an image there is no kernel.
        """
        if x is None:
            raise ValueError(f"dense_weight needs x: {self.why_not_dense}")
        return (self.routing_weights(x) @ self.experts).unflatten(1, self.weight_shape)

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the experts and the router's parameters."""
        return [self.experts, *self.router.parameters()]

    def given_by_caller(self, x: Any, routing_weights: Any = None) -> dict[str, Any]:
        """Hands over the block's routing: a recorded call of the layer is not part of a call of the block."""
        needed = self.router_shared and routing_weights is None
        return {"routing_weights": self.router.weights_of_block(x)} if needed else {}

    def forward(self, x: Tensor, routing_weights: Tensor | None = None) -> Tensor:
        """Filters images, or one image without a batch; `routing_weights` [batch, num_experts] replace the router's."""
        return super().forward(x, routing_weights)

    def filtered(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        routing_weights: Float[Tensor, "batch num_experts"] | None = None,
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Filters each image with its own mixture of the experts."""
        routing_weights = self.routing_weights(x) if routing_weights is None else routing_weights
        x, padding = self.pad(x)
        return kernels.condconv2d(
            x,
            routing_weights,
            self.experts.unflatten(1, self.weight_shape),
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            computation=self.computation,
        )

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, num_experts={self.num_experts}"
        return shown if self.computation == "auto" else f"{shown}, computation={self.computation!r}"


def check_memory(
    sizes: Iterable[int], num_experts: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Estimates the memory that the experts of some layers take, before they are made.

    Args:
        sizes: number of weights of one kernel, for each layer.
        num_experts: of each layer.
        device: the experts' device.
        dtype: of the experts.
    Raises:
        NotEnoughMemory: they take more than there is; the message gives the number of experts that would fit.
    """
    kind = torch.device(device) if device is not None else torch.get_default_device()
    if kind.type == "cuda":
        memory: int | None = torch.cuda.mem_get_info(kind)[1]
    else:
        memory = machine_memory() if kind.type == "cpu" else None
    each = sum(sizes) * (dtype or torch.get_default_dtype()).itemsize
    if memory is not None and each * num_experts > memory:
        raise NotEnoughMemory(
            f"{num_experts:,} experts take {each * num_experts / 1e9:,.1f} GB, {kind} has {memory / 1e9:,.1f} GB in all; "
            f"{memory // each:,} would fit, and training takes about four times as much"
        )


def sites(model: nn.Module, options: CondConvOptions) -> list[Site]:
    """Lists all convolutions, or the last ones; stem and classifier are left alone by default.

    A site's detail is the name of the block whose routing it shares; empty if the layer has its own.
    """
    found = conv_sites(model, obstacle=lambda conv: "")
    chosen = [site.name for site in found if not site.reason]
    early = set(chosen[: len(chosen) - math.ceil(round(options.last * len(chosen), 6))])
    reason = f"not among the last {100 * options.last:.4g} % of the layers"
    blocks = {site.name: block_of(model, site.name) if options.routing == "block" else site.name for site in found}
    return [
        dataclasses.replace(
            site,
            detail="" if blocks[site.name] == site.name else blocks[site.name],
            reason=reason if site.name in early else site.reason,
        )
        for site in found
    ]


def build(sites: Sequence[Site], options: CondConvOptions) -> dict[str, nn.Module]:
    """Builds a layer of experts for each site, and the routers that layers share."""
    weights = [site.module.weight for site in sites]
    check_memory([weight.numel() for weight in weights], options.num_experts, weights[0].device, weights[0].dtype)
    settings: dict[str, Any] = dataclasses.asdict(options)
    del settings["last"], settings["routing"]
    routing = {name: settings[name] for name in ("num_experts", "activation", "temperature", "dropout")}
    routers: dict[str, Router] = {}
    built: dict[str, nn.Module] = {}
    for site in sites:
        arguments = conv_arguments(site.module)
        if site.detail and site.detail not in routers:
            where = {name: arguments[name] for name in ("device", "dtype")}
            routers[site.detail] = Router(site.module.in_channels, **routing, **where)
            routers[site.detail].block = site.detail
        built[site.name] = CondConv2d(**arguments, **settings, router=routers.get(site.detail))
    return built


def finish(model: nn.Module, built: Mapping[str, nn.Module | None]) -> None:
    """Makes the routers that several layers share look at their blocks."""
    for router in {
        id(layer.router): layer.router for layer in built.values() if isinstance(layer, CondConv2d)
    }.values():
        if router.block:
            router.watch(model.get_submodule(router.block))


@torch.no_grad()
def match(trained: Mapping[str, Sequence[Any]], made: Mapping[str, nn.Module | None]) -> None:
    """Sets experts that mix to the trained kernel for every image, and differ a little so that training can part them.

    The routers start blind: they give every image the same weights, with which the experts' differences cancel.
    """
    for name, layer in made.items():
        assert isinstance(layer, CondConv2d)
        (conv,) = trained[name]
        count, router = layer.num_experts, layer.router
        nn.init.zeros_(router.weight)
        nn.init.zeros_(router.bias)
        share = count / 2 if router.activation == "sigmoid" else 1.0  # the sum of the weights
        kernel = conv.weight.flatten()
        apart = torch.randn_like(layer.experts) * (_APART * kernel.std(correction=0))
        layer.experts.copy_((kernel + apart - apart.mean(dim=0)) / share)
        if layer.bias is not None:
            layer.bias.copy_((conv.bias / share).expand_as(layer.bias))


METHOD = Method(
    name="condconv",
    summary="one kernel per image: a router mixes a few stored experts",
    source="Yang et al., CondConv, NeurIPS 2019, arXiv 1904.04971",
    options=CondConvOptions,
    sites=sites,
    build=build,
    finish=finish,
    match=match,
    searched={"num_experts": Range(2, 8)},
)
