"""Every campaign, with as many tries as a test run has time for."""

import pytest

from .campaigns import CAMPAIGNS


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda campaign: campaign.module)
def test_the_promise_is_kept(campaign):
    counts = campaign.run(campaign.few, seed=1)
    assert counts, "nothing was counted"
    if "skipped" in counts:
        pytest.skip(f"{campaign.module}: {counts['skipped']}")
