"""What is read from the text of compiled programs."""

from collections import Counter

from support.tpu_programs import PROGRAM

from score_st.planning import hlo


def test_collectives():
    collectives = {collective.kind: collective for collective in hlo.Program(PROGRAM).collectives()}
    assert collectives == {
        "all-reduce": hlo.Collective("all-reduce", "f32", 2 * 16 * 128 * 4, 8, 1),
        "all-gather": hlo.Collective("all-gather", "f32", 16 * 128 * 4, 4, 5),
        "reduce-scatter": hlo.Collective("reduce-scatter", "f32", 16 * 128 * 4, 4, 5),
    }


def test_traffic():
    """Vector memory is free, a copy reads as much as it writes, tiles count in full, loops as often as they run."""
    size = 16 * 128 * 4
    traffic = hlo.Program(PROGRAM).traffic()
    # into vector memory all and half of it; five times a fusion that leaves a part, half a tile, and gathering it
    assert traffic.pop("arguments") == size + size // 2 + 5 * 2 * (size + size // 2)
    assert traffic.pop("jit(step)/jvp(N)/all_modules_3/convert") == 8 * 128 * (2 + 4)
    assert sum(traffic.values()) == 0


def test_by_scope():
    names = {"jit(step)/transpose(jvp(N))/a/mul": 1, "jit(f)/transpose(jvp(N))/a/mul": 2, "jvp(N)/b/c/add": 4, "": 8}
    assert hlo.by_scope(Counter(names)) == {"backward a/mul": 3, "forward c/add": 4, "other": 8}
