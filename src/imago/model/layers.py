"""Sort the layers of any network from the image to the logits, and find its head."""

from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def layers_in_order(net: nn.Module) -> list[list[nn.Parameter]]:
    """Sort a network's parameters into layers: stem, one block after the other, head.

    A block is the unit that a network repeats: a residual block of a ResNet, an encoder block of a ViT, a Fire of
    SqueezeNet; in a plain stack, as in VGG, each convolution is a layer. Norms, tokens and position embeddings between
    the blocks belong to the layer before them. The order is that of registration, as in every network of torchvision.

    Returns:
        At least one list; the last is the head's.
    """
    body: nn.Module = getattr(net, "body", net)
    head_parameters = [parameter for name in head_names(net) for parameter in body.get_submodule(name).parameters()]
    seen = set(map(id, head_parameters))
    layers: list[list[nn.Parameter]] = []
    before_first_layer: list[nn.Parameter] = []
    for parameters, is_layer in _walk(body, is_top=True):
        unseen = [parameter for parameter in parameters if id(parameter) not in seen]
        seen.update(map(id, unseen))
        if is_layer and not all(map(is_vector, unseen)):
            layers.append([*before_first_layer, *unseen])
            before_first_layer = []
        else:
            (layers[-1] if layers else before_first_layer).extend(unseen)
    return [*layers, [*before_first_layer, *head_parameters]] if head_parameters or before_first_layer else layers


def head_names(net: nn.Module) -> list[str]:
    """Return the names, in `net.body` if there is one, of the modules that compute the logits.

    If the network does not name them, it is the last linear layer, or else, as in SqueezeNet, the last convolution.
    """
    if hasattr(net, "head_names"):
        return net.head_names  # type: ignore[return-value]
    body: nn.Module = getattr(net, "body", net)
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in body.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1:]
    return []


def new_module_names(net: nn.Module) -> list[str]:
    """Return the names of the modules that were created for the data: the head, and a stem for small images."""
    return [*head_names(net), *getattr(net, "new_stem_module_names", ())]


def is_vector(parameter: nn.Parameter) -> bool:
    """Return True for biases, scales and shifts of norms, and tokens; False for the weights of layers."""
    return parameter.numel() == max(parameter.shape, default=1)


def _walk(module: nn.Module, is_top: bool = False, in_top: bool = False) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield parameters in order; enter the network, a plain stack directly in it, and modules with lists of blocks.

    Yields:
        Parameters, and whether they can be a layer: those of a walked module itself are tokens or embeddings.
    """
    num_layers = sum(isinstance(child, nn.Conv2d | nn.Linear) for child in module.children())
    is_plain_stack = in_top and type(module) in _CONTAINERS and num_layers > 1
    if not (is_top or is_plain_stack or any(map(_is_block_list, module.modules()))):
        yield list(module.parameters()), True
        return
    yield list(module.parameters(recurse=False)), next(module.children(), None) is None
    for child in module.children():
        yield from _walk(child, in_top=is_top)


def _is_block_list(module: nn.Module) -> bool:
    """Return whether it contains two blocks of the same class, directly or in the stages that it lists."""
    if not isinstance(module, (*_CONTAINERS, nn.ModuleDict)):
        return False
    children = list(module.children())
    children += [block for child in children if type(child) in _CONTAINERS for block in child.children()]
    blocks = [type(child) for child in children if _is_block(child)]
    return len(blocks) > len(set(blocks))


def _is_block(module: nn.Module) -> bool:
    """Return whether `module` contains modules with parameters and is not an `nn.Sequential`."""
    has_layers = any(next(child.parameters(), None) is not None for child in module.children())
    return has_layers and not isinstance(module, nn.Sequential)
