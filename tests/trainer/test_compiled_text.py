"""What is read off a compiled program, against programs whose work is known."""

import jax
import jax.numpy as jnp
import pytest

from galvanax.trainer.compiled_text import collectives, work


def text_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.as_text(), compiled.cost_analysis()


def test_a_matrix_product():
    text, _ = text_of(lambda a, b: a @ b, (64, 32), (32, 16))
    assert work(text).flops == 2 * 64 * 32 * 16
    assert work(text).nbytes == pytest.approx(4 * (64 * 32 + 32 * 16 + 64 * 16))
    assert collectives(text) == []


def test_it_agrees_with_xlas_own_count_where_there_is_no_loop():
    def loss(w, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)

    text, analysis = text_of(jax.grad(loss), (48, 48), (128, 48))
    assert work(text).flops == pytest.approx(analysis["flops"] + analysis.get("transcendentals", 0), rel=0.05)


@pytest.mark.parametrize("length", [1, 7, 100])
def test_a_loop_counts_as_often_as_it_runs(length):
    def steps(w, x):
        def inner(x, _):
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x), None

        return jax.lax.scan(inner, x, None, length=length)[0]

    text, _ = text_of(steps, (32, 32), (8, 32))
    assert work(text).flops == pytest.approx(length * 3 * 2 * 8 * 32 * 32, rel=0.1)
    assert work(text).open_loops == 0


def test_the_steps_of_a_dispatch_count_once():
    """As in the training program: the outermost loop's length is known only when it runs."""

    def run(w, x, count):
        return jax.lax.fori_loop(0, count.astype(int), lambda _, x: jnp.tanh(x @ w), x)

    text, _ = text_of(run, (32, 32), (8, 32), ())
    assert work(text).flops == pytest.approx(2 * 8 * 32 * 32, rel=0.1)
    assert work(text).open_loops == 0


def test_a_loop_of_unknown_length_inside_is_said():
    def run(x):
        def halve(x):
            return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x / 2, x)

        return jax.lax.scan(lambda x, _: (halve(x) + 1, None), x, None, length=4)[0]

    text, _ = text_of(run, (32,))
    assert work(text).open_loops == 1


TEXT = """
HloModule jit_run, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4], bf16[16])) -> (s32[], f32[8,4], bf16[16]) {
  %state = (s32[], f32[8,4]{1,0}, /*index=2*/bf16[16]{0}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %half = bf16[16]{0} get-tuple-element(%state), index=2
  %one = f32[1,4]{1,0} slice(%x), slice={[0:1], [0:4]}
  %start = (f32[8,4]{1,0}, bf16[16]{0}) all-reduce-start(%x, %half), to_apply=%sum, metadata={op_name="jit(run)/psum"}
  %done = (f32[8,4]{1,0}, bf16[16]{0}) all-reduce-done(%start)
  ROOT %gather = f32[8,4]{1,0} all-gather(%one), dimensions={0}
}

%cond (state: (s32[], f32[8,4], bf16[16])) -> pred[] {
  %state = (s32[], f32[8,4]{1,0}, bf16[16]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[8,4], bf16[16])) -> (s32[], f32[8,4], bf16[16]) {
  %x = (s32[], f32[8,4]{1,0}, bf16[16]{0}) parameter(0)
  ROOT %loop = (s32[], f32[8,4]{1,0}, bf16[16]{0}) while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_messages_on_paper():
    reduce, gather = collectives(TEXT)
    assert (reduce.kind, reduce.nbytes, reduce.loops, reduce.times, reduce.where) == (
        "all-reduce", 8 * 4 * 4 + 16 * 2, (5,), 5, "jit(run)/psum",
    )  # fmt: skip
    assert (gather.kind, gather.nbytes) == ("all-gather", 8 * 4 * 4)
