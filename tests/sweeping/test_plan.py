"""What a table or a figure needs."""

from collections import Counter

import pytest

from rohydr_fast.config import METHODS, STRATEGIES, TrainConfig
from rohydr_fast.errors import UsageError
from rohydr_fast.evaluation.runs import Evaluation
from rohydr_fast.sweeping.plan import Asked, plan


def names(**asked) -> list[str]:
    return [job.name for job in plan(Asked(seeds=(4,), **asked))]


def test_table_1_is_one_model_for_each_method_and_seed_evaluated_at_all_rates():
    jobs = plan(Asked(table=1, seeds=(1, 2, 3)))
    assert len(jobs) == 3 * len(METHODS) == len({job.name for job in jobs})
    assert {job.config.missing_rate for job in jobs} == {"mixed"}
    assert {job.evaluations for job in jobs} == {(Evaluation("rates"),)}
    assert Counter(job.config.method for job in jobs) == dict.fromkeys(METHODS, 3)


def test_table_2_asks_another_question_of_the_same_runs():
    first, second = (plan(Asked(table=table, seeds=(1, 2))) for table in (1, 2))
    assert [(job.name, job.config) for job in first] == [(job.name, job.config) for job in second]
    assert {job.evaluations for job in second} == {(Evaluation("fixed"),)}


def test_a_model_for_each_rate_has_its_rate_in_its_name():
    jobs = plan(Asked(table=1, seeds=(1,), methods=("mean",), rates=(0.0, 0.3), per_rate=True))
    assert [(job.name, job.config.missing_rate, job.evaluations) for job in jobs] == [
        ("mean-rate0-seed1", "0", ()),
        ("mean-rate0.3-seed1", "0.3", ()),
    ]


def test_the_ablations_are_what_the_paper_takes_out():
    assert names(table=3) == [
        "rohydr-without-hddm-ur-seed4", "rohydr-without-hddm-seed4", "rohydr-without-ur-seed4", "rohydr-seed4",
    ]  # fmt: skip
    assert names(table=4)[:3] == ["rohydr-without-d-mr-seed4", "rohydr-without-d-seed4", "rohydr-without-mr-seed4"]
    assert [job.config.strategy for job in plan(Asked(table=5, seeds=(1,)))] == list(STRATEGIES)


def test_figure_4_varies_one_lambda_at_a_time_and_runs_the_default_once():
    jobs, default = plan(Asked(figure=4, seeds=(1,))), TrainConfig()
    changed = [
        {name for name in ("lambda_g", "lambda_al", "lambda_c") if getattr(job.config, name) != getattr(default, name)}
        for job in jobs
    ]
    assert [len(which) for which in changed].count(0) == 1 and max(map(len, changed)) == 1
    assert all(job.config.missing_rate == "0.7" for job in jobs)


def test_other_settings_are_those_that_were_given():
    base = TrainConfig(preset="paper", epochs=7, lr=5e-4, sampler="ddim")
    for job in plan(Asked(table=2, seeds=(1,), base=base)):
        assert (job.config.preset, job.config.epochs, job.config.lr, job.config.sampler) == ("paper", 7, 5e-4, "ddim")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "exactly one of --table and --figure"),
        ({"table": 1, "figure": 3}, "exactly one of --table and --figure"),
        ({"table": 6}, "--table: must be one of 1, 2, 3, 4, 5, got 6"),
        ({"figure": 1}, "--figure: must be one of 3, 4, got 1"),
        ({"table": 1, "seeds": (1, 1)}, "--seeds: must name each once"),
        ({"table": 1, "methods": ("rohydr", "magic")}, "--methods: must be among"),
        ({"table": 1, "methods": ()}, "--methods: must name each once"),
        ({"table": 1, "rates": (1.5,), "per_rate": True}, "1.5"),
        ({"table": 2, "per_rate": True}, "--per-rate: belongs to --table 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(asked, message):
    with pytest.raises(UsageError, match=message):
        Asked(**asked)
