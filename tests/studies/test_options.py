"""Options that turn into settings of phases: what is left at its default leaves no trace in them."""

from __future__ import annotations

from models.objective_settings import objective_of
from models.objectives.flow_matching import FlowMatching
from models.systems import system_of
from studies.options import FlowOptions


def test_the_scope_of_a_coupling_is_a_setting_only_where_it_is_global() -> None:
    local, default, everywhere = (
        FlowOptions(target="lj13", coupling_scope="local").phases(),
        FlowOptions(target="lj13").phases(),
        FlowOptions(target="lj13", coupling_scope="global").phases(),
    )
    assert local == default
    assert "scope" not in default.trunk.objective
    assert everywhere.trunk.objective == {**default.trunk.objective, "scope": "global"}
    assert everywhere.refinement.objective == everywhere.trunk.objective
    assert everywhere.second == default.second
    assert everywhere.trunk.fingerprint != default.trunk.fingerprint
    for phases, scope in ((default, "local"), (everywhere, "global")):
        objective = objective_of(phases.trunk.objective, system_of("lj13"))
        assert isinstance(objective, FlowMatching)
        assert objective.scope == scope
        assert objective.prepares_globally == (scope == "global")
