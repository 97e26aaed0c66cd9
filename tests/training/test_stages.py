"""Algorithm 1: which parameters each stage moves, and that it is what the equations say."""

import math
from dataclasses import replace

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast import losses
from rohydr_fast.config import PARTS_ABSENT, TrainConfig
from rohydr_fast.models.recovery import METHOD_CLASSES
from rohydr_fast.models.rohydr import PARTS, RoHyDR
from rohydr_fast.ops.reverse_loop import Modulation
from rohydr_fast.training.stages import (
    SCHEDULES,
    NumericsError,
    StageBatch,
    StageRunner,
    frozen,
    make_optimizers,
    seeded,
)
from tests.native_spy import FUSED, needs_core, spy_on_core
from tests.small_model import open_up, small_batch, small_config

BACKENDS = ["reference", pytest.param("cpp", marks=needs_core)]
STAGE_1, STAGE_2, STAGE_3 = SCHEDULES["three-stage"]
GENERATOR_PARTS = {"theta_fe", "theta_mu_sigma", "theta_ur"}
MISSING = torch.tensor([[True, False, False], [False, True, True], [False, False, False], [True, True, False]])
EVERYTHING = torch.ones(4, 3, dtype=torch.bool)


def stage_batch(missing=MISSING, present=EVERYTHING) -> StageBatch:
    x, lengths, ids = small_batch()
    return StageBatch(x, lengths, torch.tensor([1.0, -2.0, 0.5, 3.0]), ids, present, missing | ~present)


def runner(config: TrainConfig | None = None, **changes) -> StageRunner:
    config = config or TrainConfig()
    torch.manual_seed(0)
    model = RoHyDR(small_config(without=config.switches(), dropout=config.dropout, **changes))
    open_up(model)
    return StageRunner(model, config, *make_optimizers(model, config))


def snapshot(model: RoHyDR) -> dict[str, list[torch.Tensor]]:
    return {part: [p.detach().clone() for p in model.parameters_of(part)] for part in PARTS}


def moved(model: RoHyDR, before: dict) -> set[str]:
    """The parts of which any parameter changed."""
    after = snapshot(model)
    return {
        part for part in PARTS if any(not torch.equal(a, b) for a, b in zip(after[part], before[part], strict=True))
    }


def run_stage(stages: StageRunner, stage, batch=None) -> dict[str, float]:
    return stages.run(stage, batch or stage_batch(), epoch=1, batch_index=0)


@pytest.mark.parametrize("method", ["mmin", "gcnet"])
def test_one_batch_moves_every_parameter_of_a_graph_or_a_cascade(method):
    stages = runner(TrainConfig(method=method), method=method)
    batch = replace(stage_batch(), conversation=torch.tensor([[0, 1], [0, 2], [1, 1], [1, 2]]))
    before = {name: p.detach().clone() for name, p in stages.model.recovery.named_parameters()}
    terms = run_stage(stages, STAGE_1, batch)
    assert all(math.isfinite(value) for value in terms.values()) and terms[stages.model.recovery.term] > 0
    assert before
    still = [name for name, p in stages.model.recovery.named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (STAGE_1, GENERATOR_PARTS),
        (STAGE_2, GENERATOR_PARTS | {"theta_f", "theta_mr", "theta_d"}),
        (STAGE_3, GENERATOR_PARTS | {"theta_f", "theta_mr", "theta_c"}),
    ],
    ids=["S1", "S2", "S3"],
)
def test_each_stage_moves_the_parameters_that_algorithm_1_names_and_no_other(stage, parts):
    stages = runner()
    before = snapshot(stages.model)
    run_stage(stages, stage)
    assert moved(stages.model, before) == parts


def test_every_parameter_of_the_named_parts_has_a_gradient():
    stages = runner()
    for stage in SCHEDULES["three-stage"]:
        run_stage(stages, stage)
    still = [n for n, p in stages.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_optimizers_are_disjoint_and_together_complete():
    stages = runner()
    groups = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (stages.optimizer, stages.optimizer_d)
    ]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(p) for p in stages.model.parameters()}
    assert groups[1] == {id(p) for p in stages.model.discriminator.parameters()}


def test_the_discriminator_gets_no_gradient_in_the_generators_step():
    """After stage 2 D holds the gradient of L_D alone: what the step of O added must be nothing."""
    stages = runner()
    batch = stage_batch()
    seen = []
    original = stages._reconstructor
    stages._reconstructor = lambda *a: (
        seen.append([p.grad.clone() for p in stages.model.discriminator.parameters()]),
        original(*a),
    )[1]
    run_stage(stages, STAGE_2, batch)
    after = [p.grad for p in stages.model.discriminator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(seen[0], after, strict=True))


@pytest.mark.parametrize("stage", [STAGE_2, STAGE_3], ids=["S2", "S3"])
def test_without_chain_gradient_the_denoiser_rests_in_the_later_stages(stage):
    stages = runner(TrainConfig(chain_grad="none"))
    before = snapshot(stages.model)
    run_stage(stages, stage)
    assert "theta_mu_sigma" not in moved(stages.model, before)
    assert {"theta_fe", "theta_ur", "theta_f"} <= moved(stages.model, before)


@needs_core
@pytest.mark.parametrize(("chain_grad", "ways_back"), [("full", [2]), ("last-1", [2]), ("none", [])])
def test_a_stage_runs_its_chains_in_one_native_call_and_their_gradient_in_another(chain_grad, ways_back, monkeypatch):
    calls = spy_on_core(monkeypatch)
    missing = torch.tensor([[True, True, False]] * 4)
    run_stage(runner(TrainConfig(chain_grad=chain_grad)), STAGE_1, stage_batch(missing))
    of_op = {op: [call.chains for call in calls if call.op == op] for op in FUSED}
    assert of_op["reverse_loop"] == [2] and of_op["reverse_loop_backward"] == ways_back
    assert of_op["diffusion_loss"] == [2]  # Eq. 3 of both modalities, with its gradients


def test_all_three_steps_of_the_chain_are_the_full_chain():
    """last-K with K the whole chain equals full, bit for bit; last-1 does not."""
    weights = []
    for chain_grad in ("full", "last-3", "last-1"):
        stages = runner(TrainConfig(chain_grad=chain_grad))
        run_stage(stages, STAGE_3)
        weights.append(torch.cat([p.detach().flatten() for p in stages.model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_stage_values_are_those_of_the_equations():
    """L_D, L_rec, L_adv, L_C1, L_C2 and their sums, recomputed from a plain forward."""
    config = TrainConfig(dropout=0.0, lambda_al=0.3, lambda_c=0.8)
    stages = runner(config)
    batch = stage_batch()
    done = stages._forward(STAGE_3, batch, seed=7)
    everyone = torch.ones(4, dtype=torch.bool)
    c1 = losses.eq9_classifier(stages.model.classifier(done.f_rec), batch.label, everyone)
    c2 = losses.eq9_classifier(stages.model.classifier(done.f_gt), batch.label, everyone)
    terms: dict[str, float] = {}
    assert stages._classifier(done, batch, terms).item() == pytest.approx((0.8 * c1 + 0.2 * c2).item())
    assert terms == pytest.approx({"L_C1": c1.item(), "L_C2": c2.item()})
    rec = ((done.f_rec - done.f_gt) ** 2).mean().item()
    adversarial = -torch.log(torch.sigmoid(stages.model.discriminator(done.f_rec))).mean().item()
    assert stages._reconstructor(done, terms).item() == pytest.approx(0.3 * adversarial + 0.7 * rec, rel=1e-5)
    assert (terms["L_rec"], terms["L_adv"]) == pytest.approx((rec, adversarial), rel=1e-5)


def test_complete_clips_have_equal_features_without_mr_and_dropout():
    """X_Mrec = X_Mgt where nothing is missing."""
    stages = runner(TrainConfig(dropout=0.0, without="mr"))
    done = stages._forward(STAGE_3, stage_batch(), seed=7)
    torch.testing.assert_close(done.f_rec[2], done.f_gt[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(done.f_rec[0], done.f_gt[0], rtol=1e-3)


def test_nothing_missing_skips_stage_1_and_runs_the_others():
    stages = runner()
    before = snapshot(stages.model)
    complete = stage_batch(missing=torch.zeros(4, 3, dtype=torch.bool))
    assert run_stage(stages, STAGE_1, complete) == {}
    assert moved(stages.model, before) == set()
    assert run_stage(stages, STAGE_2, complete)["L_rec"] > 0
    assert run_stage(stages, STAGE_3, complete)["S3"] > 0


def test_a_modality_that_the_file_lacks_has_no_ground_truth_losses():
    """Clip 0 lacks vision: its recovery is used, but Eq. 3 to 7 and L_C2 do not see the clip."""
    present = EVERYTHING.clone()
    present[0, 2] = False
    stages = runner(TrainConfig(dropout=0.0))
    batch = stage_batch(present=present)
    done = stages._forward(STAGE_3, batch, seed=7)
    assert done.complete.tolist() == [False, True, True, True]
    assert 0 in done.recovered["v"].rows
    with_garbage = replace(batch, x={**batch.x, "v": batch.x["v"].clone()})
    with_garbage.x["v"][0] = math.nan
    for stage in SCHEDULES["three-stage"]:
        first, second = runner(TrainConfig(dropout=0.0)), runner(TrainConfig(dropout=0.0))
        assert run_stage(first, stage, batch) == run_stage(second, stage, with_garbage)


def test_only_absent_modalities_leave_no_generator_loss():
    """Where every missing modality is missing in the file too, stage 1 has nothing to learn from."""
    present = EVERYTHING.clone()
    present[:, 2] = False
    stages = runner()
    before = snapshot(stages.model)
    nothing_withheld = torch.zeros(4, 3, dtype=torch.bool)
    terms = run_stage(stages, STAGE_1, stage_batch(nothing_withheld, present))
    assert "S1" not in terms and moved(stages.model, before) == set()


@pytest.mark.parametrize("strategy", ["two-stage", "one-stage"])
def test_other_strategies_sum_the_same_losses(strategy):
    stages = runner(TrainConfig(strategy=strategy, dropout=0.0, lambda_g=2.0))
    last = SCHEDULES[strategy][-1]
    before = snapshot(stages.model)
    terms = run_stage(stages, last)
    expected = 0.5 * terms["L_adv"] + 0.5 * terms["L_rec"] + 0.5 * terms["L_C1"] + 0.5 * terms["L_C2"]
    if strategy == "one-stage":
        expected += 2.0 * (terms["L_HDDM"] + terms["L_UR"])
    assert terms[last.name] == pytest.approx(expected, rel=1e-5)
    assert moved(stages.model, before) == set(PARTS)


@pytest.mark.parametrize("without", ["hddm", "ur", "d", "mr", "hddm,ur", "d,mr", "hddm,ur,d,mr"])
def test_every_switch_leaves_a_trainable_model(without):
    stages = runner(TrainConfig(without=without))
    terms = {}
    for stage in SCHEDULES["three-stage"]:
        terms |= run_stage(stages, stage)
    assert terms["S3"] > 0
    assert ("L_adv" in terms) == ("d" not in without.split(","))
    assert ("S2" in terms) == (without not in ("d,mr", "hddm,ur,d,mr"))


def test_a_stage_repeats_bit_for_bit():
    """Dropout and noise are functions of seed, epoch, stage and batch, not of what ran before."""
    first, second = runner(), runner()
    torch.rand(17)
    for stage in SCHEDULES["three-stage"]:
        assert run_stage(first, stage) == run_stage(second, stage)
    state = torch.get_rng_state()
    run_stage(first, STAGE_1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", sorted(METHOD_CLASSES))
def test_bf16_computes_layers_in_bfloat16_and_what_recovery_reads_in_float32(method):
    without = ",".join(PARTS_ABSENT.get(method, ()))
    batch = replace(stage_batch(), conversation=torch.tensor([[0, 1], [0, 2], [1, 1], [1, 2]]))
    found = {}
    for precision in ("float32", "bf16"):
        config = TrainConfig(method=method, without=without, precision=precision, dropout=0.0)
        stages, seen = runner(config, method=method, train_clips=10), []
        for extractor in stages.model.extractors.values():
            extractor.conv.register_forward_hook(lambda _, given, out, seen=seen: seen.append(out.dtype))
        survey = stages.model.recovery.survey
        stages.model.recovery.survey = lambda sequences, *rest, survey=survey, seen=seen: (
            seen.extend(s.x.dtype for s in sequences.values()) or survey(sequences, *rest)
        )
        found[precision] = {
            name: value for stage in stages.stages for name, value in run_stage(stages, stage, batch).items()
        }
        layers = torch.bfloat16 if precision == "bf16" else torch.float32
        assert seen == ([layers] * 3 + [torch.float32] * 3) * 3
        assert all(p.dtype == torch.float32 for p in stages.model.parameters())
    assert found["bf16"] == pytest.approx(found["float32"], rel=0.2, abs=0.05)
    assert found["bf16"] != found["float32"]


def test_the_gradient_is_clipped_and_reported_before_clipping():
    stages = runner(TrainConfig(clip=1e-3))
    assert run_stage(stages, STAGE_3)["S3_grad_norm"] > 1e-3
    norm = torch.sqrt(sum(p.grad.pow(2).sum() for p in stages.model.parameters() if p.grad is not None))
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_nan_is_named_and_touches_no_parameter():
    stages = runner()
    batch = stage_batch()
    batch = replace(batch, label=torch.full((4,), math.nan))
    before = snapshot(stages.model)
    # No chain is at fault, and none is named.
    with pytest.raises(NumericsError, match="L_C1 is nan in epoch 1, batch 0, S3.*last-5.$"):
        run_stage(stages, STAGE_3, batch)
    assert moved(stages.model, before) == set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_chain_that_is_not_finite_is_named_with_its_first_step(backend, step, monkeypatch):
    stages = runner()
    denoiser, before = stages.model.hddm["v"].denoiser, snapshot(stages.model)
    original = denoiser.conditioning

    def conditioning(timesteps, encoded):
        (blocks, final), cond_kv = original(timesteps, encoded)
        poison = torch.zeros(len(final), 1, 1)
        poison[step - 1] = math.nan
        return Modulation(blocks, final + poison), cond_kv

    monkeypatch.setattr(denoiser, "conditioning", conditioning)
    words = f"The reverse chain of vision is not finite from step {step} of 3 down."
    with use_backend(backend), pytest.raises(NumericsError, match=f"L_C1 is nan in epoch 1, batch 0, S3. .* {words}$"):
        run_stage(stages, STAGE_3)
    assert moved(stages.model, before) == set()


def test_all_chains_that_are_not_finite_are_named():
    stages = runner()
    with torch.no_grad():
        for m in "tv":
            stages.model.hddm[m].denoiser.out.bias.fill_(math.inf)
    words = "".join(f" The reverse chain of {name} is not finite from step 3 of 3 down." for name in ("text", "vision"))
    with pytest.raises(NumericsError, match=f"is nan in epoch 1, batch 0, S3. [^.]*[.]{words}$"):
        run_stage(stages, STAGE_3)


def test_a_gradient_that_is_not_finite_is_named_and_touches_no_parameter():
    stages = runner()
    before = snapshot(stages.model)
    parameter = next(stages.model.classifier.parameters())
    parameter.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NumericsError, match="the gradient norm is nan in epoch 1, batch 0, S3.*last-5.$"):
        run_stage(stages, STAGE_3)
    assert moved(stages.model, before) == set()


def test_helpers_restore_what_they_change():
    stages = runner()
    state = torch.get_rng_state()
    with frozen(stages.model.discriminator), seeded(3):
        assert not any(p.requires_grad for p in stages.model.discriminator.parameters())
    assert all(p.requires_grad for p in stages.model.parameters())
    assert torch.equal(state, torch.get_rng_state())
