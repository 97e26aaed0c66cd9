"""The reverse loop of exported graphs: the reference's numbers, eager and as a scan."""

import pytest
import torch

from rohydr_fast.diffusion.sampler import SampleRequest, chain_of
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import philox
from rohydr_fast.ops.registry import backend
from rohydr_fast.ops.reverse_loop import reference, scanned
from tests.ops.inputs import CHANNELS, WIDTH, make_denoiser, masks
from tests.small_model import open_up

pytestmark = pytest.mark.usefixtures("one_thread")


def request(steps: int, cond: torch.Tensor, tokens: int, **options) -> SampleRequest:
    given = masks(cond.shape[0], tokens, cond.shape[1])
    return SampleRequest(make_denoiser().requires_grad_(False), cond, steps, seed=4, **given, **options)


def drawn(chain: reference.Chain) -> torch.Tensor:
    """z_K to z_2 of the chain's key."""
    steps = range(len(chain.coefficients), 1, -1)
    like = chain.x.new_empty(0, *chain.x.shape)
    z = [reference.step_noise(chain.x, chain.noise, step=i, stream=philox.Stream.STEP) for i in steps]
    return torch.stack(z) if z else like


def expected(chain: reference.Chain) -> torch.Tensor:
    options = dict(num_heads=chain.num_heads, token_mask=chain.token_mask, key_mask=chain.key_mask)
    return reference.reverse_loop(*chain[:5], chain.coefficients, chain.noise, **options)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"sampler": "ddim", "eta": 0.7}, {"sampler": "unipc"}, {"prediction": "v"}])
def test_it_is_the_reference(steps, options):
    with backend("reference"):
        chain = chain_of(request(steps, torch.randn(3, 7, WIDTH), 5, **options))
    assert torch.equal(scanned.reverse_loop(chain, drawn(chain)), expected(chain))
    if options.get("sampler") == "unipc":
        assert torch.equal(scanned.reverse_loop(chain, None), expected(chain))


def test_the_last_step_has_no_noise_whatever_its_variance():
    with backend("reference"):
        chain = chain_of(request(2, torch.randn(3, 7, WIDTH), 5))
    chain.weights.out_bias[CHANNELS:] = 1e4  # of v: exp of it is infinite, and infinity times 0 is no number
    coefficients = chain.coefficients.clone()
    coefficients[1, 2:4] = 0
    chain = chain._replace(coefficients=coefficients)
    found = scanned.reverse_loop(chain, drawn(chain))
    assert found.isfinite().all() and torch.equal(found, expected(chain))


class Loop(torch.nn.Module):
    """The loop alone, of `steps` steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps, self.denoiser = steps, Denoiser(CHANNELS, WIDTH, num_blocks=1, num_heads=2).requires_grad_(False)
        open_up(self.denoiser)

    def forward(self, noise: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        request = SampleRequest(self.denoiser, cond, self.steps, tokens=noise.shape[2])
        chain = chain_of(request, lambda *arguments, **options: noise[0])
        return scanned.reverse_loop(chain, noise[1:])


def export(steps: int, tokens: int, varying=torch.export.Dim.STATIC) -> torch.export.ExportedProgram:
    arguments, clips = (torch.randn(steps, 2, tokens, CHANNELS), torch.randn(2, 3, WIDTH)), torch.export.Dim("clips")
    sizes = {1: clips, 2: varying}
    with torch.no_grad(), backend("reference"):
        return torch.export.export(Loop(steps), arguments, dynamic_shapes=(sizes, {0: clips}), strict=False)


def test_an_exported_loop_takes_any_number_of_tokens_whatever_was_exported_before():
    """The compiler remembers scans, and would write that the third has the five tokens of the first two."""
    export(3, 5)
    export(6, 5)
    program = export(3, 5, torch.export.Dim("tokens", min=1))
    for tokens in (1, 5, 9):
        noise, cond = torch.randn(3, 4, tokens, CHANNELS), torch.randn(4, 3, WIDTH)
        with torch.no_grad(), backend("reference"):
            loop = Loop(3)
            loop.load_state_dict(program.state_dict)
            torch.testing.assert_close(program.module()(noise, cond), loop(noise, cond))
