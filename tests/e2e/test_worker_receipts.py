"""Receipts: what a run says about its data order and its state, and what it then holds another run to; the check that
ranks have not drifted apart; and that changing the number of ranks on the way changes no sample's place."""
import json

import pytest

from workerlib import checkpoints, make_spec, result, run

HASHES = ["order", "weights", "buffers", "optimizer"]
UNEVEN = make_spec(train__batch_size=23)  # rows that neither 2 nor 3 nor 8 ranks share evenly
RANKS = 2


def receipts(where):
    return result(where)["receipts"]


def orders(where):
    return {r["step"]: r["order"] for r in receipts(where)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    where, _ = run(tmp_path_factory.mktemp("whole"), make_spec(), ranks=RANKS)
    return where


def test_form(whole):
    rs = receipts(whole)
    assert [r["step"] for r in rs] == list(range(1, 13))  # few steps: each has one
    for r in rs:
        assert set(r) == {"step", "loss", *HASHES}
        assert all(len(r[k]) == 32 and int(r[k], 16) >= 0 for k in HASHES)
    losses = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [float(r["loss"]) for r in rs] == [m["loss"] for m in losses if m["kind"] == "step"]
    for key in HASHES:
        assert len({r[key] for r in rs}) == len(rs)
    manifest = json.loads((whole / "checkpoints/step-00000010/manifest.json").read_text())
    assert manifest["receipts"] == rs[:10] and manifest["order"] == rs[9]["order"] and manifest["version"] == 2
    assert result(whole)["order_from"] == 0


@pytest.mark.sanitize
def test_resumed_at_home_is_equal(tmp_path, whole):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 3, ranks=RANKS)
    assert receipts(where) == receipts(whole)[:3]
    run(tmp_path, make_spec(), "--max-steps", 7, "--resume", ranks=RANKS)
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert receipts(where) == receipts(whole)
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)  # a run that is complete keeps them
    assert receipts(where) == receipts(whole)


@pytest.mark.parametrize("ranks", [None, 3])
def test_elsewhere_the_order_is_equal(tmp_path, whole, ranks):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 6, ranks=RANKS)
    run(tmp_path, make_spec(), "--resume", ranks=ranks)
    assert receipts(where)[:6] == receipts(whole)[:6]
    assert orders(where) == orders(whole)


def test_another_seed_is_another_order(tmp_path, whole):
    where, _ = run(tmp_path, make_spec(seed=4), ranks=RANKS)
    a, b = orders(where), orders(whole)
    assert a.keys() == b.keys() and all(a[s] != b[s] for s in a)


def test_order_does_not_depend_on_the_model(tmp_path, whole):
    where, _ = run(tmp_path, make_spec(batchformer__enabled=False), ranks=RANKS)
    assert orders(where) == orders(whole)
    assert all(a["weights"] != b["weights"] for a, b in zip(receipts(where), receipts(whole)))


@pytest.mark.sanitize
def test_ranks_change_in_the_middle_of_an_epoch(tmp_path):
    """2 → 8 → 3 ranks feed what one rank feeds, at every step, over epochs that begin and end on other ranks."""
    one, _ = run(tmp_path, UNEVEN, run_dir="one")
    per_epoch = result(one)["n_steps"] // 3
    where, _ = run(tmp_path, UNEVEN, "--max-steps", 2, ranks=2)
    run(tmp_path, UNEVEN, "--max-steps", per_epoch + 2, "--resume", ranks=8)
    run(tmp_path, UNEVEN, "--resume", ranks=3)
    assert per_epoch > 3 and len(orders(one)) == 3 * per_epoch
    assert orders(where) == orders(one)
    assert len(set(orders(one).values())) == 3 * per_epoch


def test_a_longer_run_has_fewer(tmp_path):
    """Steps of receipts follow the length of the run, and those of runs of other lengths are among each other's."""
    spec = make_spec(train__epochs=33, eval__every_epochs=0)
    where, _ = run(tmp_path, make_spec(train__epochs=4, eval__every_epochs=0))
    before = orders(where)
    assert list(before) == list(range(1, 17))
    run(tmp_path, spec, "--resume")
    assert list(orders(where)) == list(range(4, 132 + 1, 4))
    assert all(before[s] == orders(where)[s] for s in before if s % 4 == 0)
    fresh, _ = run(tmp_path, spec, run_dir="fresh")
    assert orders(fresh) == orders(where)


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks, odd, than", [(2, 1, 0), (3, 2, 0), (3, 0, 1)])
def test_a_rank_that_drifted_is_named(tmp_path, whole, ranks, odd, than):
    """A bit flips in one rank's weights; nothing is saved from then on, and the run can go on from what was."""
    where, p = run(tmp_path, make_spec(), ranks=ranks, expect=1,
                   env={"BATCHFORMER_FAULT": f"train.flip_weight.{odd}:error@7"})
    reason = result(where)["reason"]
    assert f"step 7: rank {odd} holds another set of weights than rank {than} (" in reason
    assert "equal after step 6" in reason and p.stderr.count("ERROR") == 1
    assert result(where)["status"] == "failed" and checkpoints(where) == [5]
    assert [r["step"] for r in receipts(where)] == list(range(1, 7))
    run(tmp_path, make_spec(), "--resume", ranks=ranks)
    assert orders(where) == orders(whole)


def test_a_checkpoint_between_receipts_is_looked_at_too(tmp_path):
    """Receipts every 4th step, checkpoints every 5th: what is saved was agreed on."""
    spec = make_spec(train__epochs=33, eval__every_epochs=0)
    where, _ = run(tmp_path, spec, ranks=2, expect=1, env={"BATCHFORMER_FAULT": "train.flip_weight.1:error@5"})
    reason = result(where)["reason"]  # comparisons after steps 4, 5, 8, 10, 12
    assert "step 12: rank 1 holds another set of weights" in reason and "equal after step 10" in reason
    assert checkpoints(where) == [5, 10]
    again, _ = run(tmp_path, spec, ranks=2, run_dir="again", expect=1,
                   env={"BATCHFORMER_FAULT": "train.flip_weight.1:error@2"})
    assert "step 5: rank 1 holds" in result(again)["reason"] and checkpoints(again) == []


def test_statistics_per_rank_may_differ(tmp_path):
    """With norm "batch" running statistics differ between ranks by design: rank 0's have the receipt."""
    spec = make_spec(model__norm="batch")
    where, _ = run(tmp_path, spec, "--max-steps", 6, ranks=3)
    run(tmp_path, spec, "--resume", ranks=3)
    again, _ = run(tmp_path, spec, ranks=3, run_dir="again")
    assert receipts(where) == receipts(again) and len(receipts(where)) == 12


def test_a_failed_start_has_none(tmp_path):
    where, _ = run(tmp_path, make_spec(train__batch_size=2), ranks=3, expect=2)
    assert receipts(where) == []
