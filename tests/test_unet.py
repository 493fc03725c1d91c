import pytest
import torch
from golden_weights import PUBLISHED, assert_golden, normal, published_unet, rounding_share, state_dict

from unet import UNet, UniformDropout, UpsamplingConv2d, published_multipliers


def small_unet() -> UNet:
    """Return a network without zero weights."""
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return unet


@pytest.mark.parametrize("network", PUBLISHED)
def test_parameters_have_the_published_names_and_shapes(network, golden):
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in published_unet(network).state_dict().items()}
    assert shapes == golden("unet_state_dict")[network]


@pytest.mark.parametrize("network", ["ddad_s_32", "ddad_s_64"])
def test_output_has_the_golden_values(network, golden):
    unet = published_unet(network).eval()
    unet.load_state_dict(state_dict(golden("unet_state_dict")[network]))
    size = PUBLISHED[network][0]
    with torch.no_grad():
        assert_golden(unet(normal(12, 2, 3, size, size), torch.tensor([7, 430])), golden(f"unet_{network}")["y"])


def test_output_of_the_large_network_has_the_golden_values(golden):
    unet = published_unet("ddad_256").eval()
    unet.load_state_dict(state_dict(golden("unet_state_dict")["ddad_256"]))
    with torch.no_grad():
        y = unet(normal(12, 1, 3, 256, 256), torch.tensor([7]))
    expected = golden("unet_ddad_256")
    corner = next(name for name, value in expected.items() if value.shape[-2:] == (8, 8))
    assert_golden(y[..., :8, :8].reshape(expected[corner].shape), expected[corner])
    for name, statistic in (("mean", y.mean(dim=(0, 2, 3))), ("std", y.std(dim=(0, 2, 3), correction=0))):
        found = next(value for key, value in expected.items() if name in key)
        torch.testing.assert_close(
            statistic, torch.from_numpy(found).reshape(-1).to(statistic), rtol=1e-4, atol=1e-4 * float(y.abs().max())
        )


@pytest.mark.parametrize(("base_channels", "count"), [(64, 32_952_707), (32, 8_257_731)])
def test_published_networks_have_the_published_number_of_parameters(base_channels, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(256, base_channels).parameters()) == count


def test_output_is_zero_at_initialisation():
    unet = UNet(32, 8, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(16,), heads=2)
    assert not unet(torch.randn(2, 3, 32, 32), torch.tensor([0, 999])).any()


@pytest.mark.parametrize("image_size", [32, 64, 96, 128, 192, 256, 320, 512])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_published_shapes_take_any_size_that_their_levels_divide(image_size, in_channels):
    with torch.device("meta"):
        unet = UNet(image_size, 32, heads=2, in_channels=in_channels)
        x = torch.zeros(1, in_channels, image_size, image_size)
        assert unet(x, torch.zeros(1)).shape == x.shape


def test_every_picture_of_a_batch_has_its_own_step():
    """A norm of one channel per group would cancel the time embedding, so this network has two."""
    torch.manual_seed(0)
    unet = UNet(32, 64, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(16,), heads=2).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, 3, 32, 32), torch.tensor([0, 400, 999])
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(unet(x, t), alone, rtol=1e-5, atol=1e-5)
    assert (unet(x[:1], t[:1]) - unet(x[:1], t[1:2])).abs().max() > 1e-3


def test_a_network_is_rebuilt_from_its_architecture():
    unet = UNet(
        32,
        8,
        channel_multipliers=(0.5, 2),
        blocks_per_level=1,
        attention_sizes=(16,),
        heads=2,
        dropout=0.1,
        in_channels=1,
    )
    again = UNet(**unet.architecture)
    assert again.architecture == unet.architecture
    again.load_state_dict(unet.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 100}, "image_size is 100"),
        ({"image_size": 16}, "image_size is 16"),
        ({"image_size": 1024}, "image_size is 1024"),
        ({"image_size": 64, "heads": 3}, "heads is 3"),
        ({"image_size": 64, "base_channels": 33}, "base_channels is 33"),
        ({"image_size": 64, "channel_multipliers": []}, "channel_multipliers is empty"),
    ],
)
def test_impossible_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{"base_channels": 32, "heads": 2} | arguments)


def test_sizes_between_published_ones_have_the_multipliers_of_the_smaller():
    assert published_multipliers(320) == published_multipliers(256) == (1, 1, 2, 2, 4, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_upsampling_convolution_equals_upsampling_then_convolution_with_gradients(layout):
    convolution = UpsamplingConv2d(5, 7, 3, padding=1).double().to(memory_format=layout)
    torch.nn.init.normal_(convolution.weight, generator=torch.Generator().manual_seed(0))
    x = normal(1, 2, 5, 6, 9).double().to(memory_format=layout).requires_grad_()
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    plain = torch.nn.functional.conv2d(enlarged, convolution.weight, convolution.bias, padding=1)
    actual = convolution(x)
    torch.testing.assert_close(actual, plain)
    inputs, cotangent = (x, convolution.weight, convolution.bias), normal(2, 2, 7, 12, 18).double()
    gradients = (torch.autograd.grad(output, inputs, cotangent) for output in (actual, plain))
    torch.testing.assert_close(*gradients)


def test_operations_in_place_change_neither_the_input_nor_the_output():
    unet, x, t = small_unet(), normal(3, 2, 3, 16, 16), torch.tensor([3, 200])
    before = x.clone()
    with torch.no_grad():
        expected = unet(x, t)
    assert torch.equal(x, before) and expected.any()
    torch.testing.assert_close(unet(x.requires_grad_(), t), expected)


def test_dropout_drops_its_share_in_training_only_and_scales_the_rest():
    torch.manual_seed(0)
    x, dropout = torch.ones(200, 1000, requires_grad=True), UniformDropout(0.3)
    y = dropout(x)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(y != 0, y > 1.42) and float(y.detach().max()) == pytest.approx(1 / 0.7)
    assert float((y != 0).double().mean()) == pytest.approx(0.7, abs=0.005)  # five standard deviations
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reduced", [torch.bfloat16, torch.float16])
def test_norms_are_computed_in_fp32_under_autocast(reduced, layout):
    unet, norms = small_unet().to(memory_format=layout), []
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda norm, inputs, output: norms.append((norm, inputs[0], output)))
    x, t = normal(3, 2, 3, 16, 16).to(memory_format=layout), torch.tensor([3, 200])
    expected = unet(x, t)
    norms.clear()
    with torch.autocast("cpu", reduced):
        actual = unet(x, t)
    assert actual.dtype == reduced
    assert_golden(actual.float(), expected.detach().numpy(), rounding_share(unet, reduced))
    for norm, x_in, output in norms:
        expected_output = torch.nn.functional.group_norm(x_in.float(), norm.num_groups, norm.weight, norm.bias)
        torch.testing.assert_close(output.float(), expected_output, rtol=torch.finfo(output.dtype).eps, atol=1e-5)
