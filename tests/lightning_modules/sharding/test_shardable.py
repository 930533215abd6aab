"""What cannot be split is refused before training starts; any other strategy leaves the parts as they are."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_modules.errors import UserError
from lightning_modules.sharding.shards import shards_of
from lightning_modules.sharding.strategy import FullyShardedStrategy
from tests.lightning_modules.test_speech_llm import make_llm


def test_the_strategy_of_lightning_itself_is_refused() -> None:
    llm = make_llm("ntp")
    llm._trainer = SimpleNamespace(strategy=ModelParallelStrategy(), precision="32-true")  # type: ignore[assignment]
    with pytest.raises(UserError, match="set strategy.class_path to lightning_modules.sharding.strategy.Fully"):
        llm.configure_model()


def test_other_strategies_split_nothing() -> None:
    llm = make_llm("ntp")
    before = [id(parameter) for parameter in llm.parameters()]
    llm._trainer = SimpleNamespace(strategy=DDPStrategy(), precision="32-true")  # type: ignore[assignment]
    llm.configure_model()
    with llm.whole_weights():
        assert [id(parameter) for parameter in llm.parameters()] == before


def test_muon_is_refused_where_matrices_are_split() -> None:
    llm = make_llm("ntp", muon=True)
    llm.check_strategy(DDPStrategy())
    with pytest.raises(UserError, match="muon needs whole matrices; set module.init_args.muon to false"):
        llm.check_strategy(FullyShardedStrategy())


def test_every_weight_of_a_thinker_belongs_to_a_part_and_layers_are_its_largest_lists() -> None:
    thinker = make_llm("ntp").thinker
    shards = shards_of(thinker)
    owned = {id(parameter) for shard in shards for parameter in shard.root.parameters()}
    assert owned == {id(parameter) for parameter in thinker.parameters()}
    assert [len(shard.layers) for shard in shards] == [2, 0, 2]
    assert list(shards[2].layers) == list(thinker.language_model.causal_lm.base_model.layers)
