"""The text of a compiled TPU program, and programs that only seem to be compiled."""

import dataclasses
import types

import jax

# one loop, and a collective in each notation of groups, one of them in a fusion
PROGRAM = """\
HloModule jit_step

%fused (p.0: f32[16,128]) -> f32[4,128] {
  %p.0 = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %rs.1 = f32[4,128]{1,0:T(8,128)} reduce-scatter(%p.0), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%body (p.1: f32[16,128]) -> f32[16,128] {
  %p.1 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %part = f32[4,128]{1,0:T(8,128)} fusion(%p.1), kind=kCustom, calls=%fused
  ROOT %full = f32[16,128]{1,0:T(8,128)} all-gather(%part), replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (p.2: f32[16,128]) -> pred[] {
  ROOT %p.3 = pred[]{:T(512)} constant(true)
}

ENTRY %main (x: f32[16,128], y: bf16[3,100]) -> f32[16,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0)
  %y = bf16[3,100]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="y"}
  %copy-start = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %sum = (f32[16,128]{1,0:T(8,128)S(1)}, f32[7]{0:T(128)S(1)}) all-reduce(%copy-done, %copy-done), \
replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%condition, metadata={op_name="jit(step)/transpose(jvp(N))/psum"}
  %one = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%sum), index=0
  %slice-start = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %narrow = f32[3,100]{1,0:T(8,128)} convert(%y), metadata={op_name="jit(step)/jvp(N)/all_modules_3/convert"}
  ROOT %loop = f32[16,128]{1,0:T(8,128)} while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


@dataclasses.dataclass
class FakeProgram:
    """Stands in for a lowered program that needs so many GiB of a chip's 15.75; its texts are noted when compiled."""

    text: str
    needed: float
    compiled: list[str]

    def as_text(self):
        return self.text

    def compile(self):
        self.compiled.append(self.text)
        if self.needed > 15.75:
            raise jax.errors.JaxRuntimeError(
                f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
                f"Used {self.needed:.2f}G of 15.75G hbm. Exceeded hbm capacity by 1.00G."
            )
        sizes = {f"{name}_size_in_bytes": 2**30 for name in ("argument", "output", "temp", "generated_code", "alias")}
        return types.SimpleNamespace(
            memory_analysis=lambda: types.SimpleNamespace(**sizes),
            cost_analysis=lambda: {"flops": 1e12, "bytes accessed": 2e9},
            as_text=lambda: PROGRAM,
        )
