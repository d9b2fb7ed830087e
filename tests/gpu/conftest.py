"""The allocator as every command of memdiff sets it: before CUDA starts in this process, and for those it starts."""

from memdiff.runtime.cuda_allocator import use_expandable_segments

use_expandable_segments()
