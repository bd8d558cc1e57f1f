"""Lists in messages stay short."""

from pdgen.messages import Fault, describe_faults, name_some


def test_three_names_and_the_number_of_the_others():
    assert name_some([]) == ""
    assert name_some(["a", 2, "c"]) == "a, 2, c"
    assert name_some(range(1003), "; ") == "0; 1; 2 and 1,000 more"
    for count in (1, 2, 3, 9):
        long = name_some(["begin" + "x" * 1000 + "end"] * count)
        assert 300 < len(long) < 350 and long.startswith("begin") and "end" in long[-14:]


def test_many_faults_are_counted_by_kind():
    few = [Fault("missing", "a", "tensor a is missing"), Fault("unknown", "b", "tensor b is unknown")]
    assert describe_faults(few) == "tensor a is missing; tensor b is unknown"
    many = [Fault("missing", f"m{n}", "") for n in range(240)] + few[1:]
    assert describe_faults(many) == "241 faults, 240 missing, 1 unknown: m0, b, m1 and 238 more"
    name = "language_model.model.layers.27.self_attn.q_proj_moe_gen.weight"
    kinds = ("missing", "unknown", "of another shape", "in two files")
    assert len(describe_faults([Fault(kind, name, name * 3) for kind in kinds for _ in range(9999)])) < 300
