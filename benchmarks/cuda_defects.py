"""Defects that the CUDA paths once had, each as an edit of today's files, with the test that fails while it is there.

benchmarks.cuda_mutations puts them back one by one; docs/cuda.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """A place in a file: how it stands, once, and how it stood."""

    file: str
    now: str
    before: str


@dataclass(frozen=True)
class Defect:
    """What was wrong.

    Args:
        what: what a GPU would have shown.
        commit: in which it was mended.
        test: fails while it is there.
        says: a part of the assertion that fails, or of the error.
    """

    what: str
    commit: str
    edits: tuple[Edit, ...]
    test: str
    says: str


MENDED = "d9128b6"
"""The commit in which most of them were."""
GRAPH, TENSORRT = "model/backends/cuda_graph.py", "model/backends/tensorrt.py"
LANE, OOM, WARMUP = "serving/engine/lanes.py", "serving/engine/oom.py", "serving/engine/warmup.py"
ATTENTION, FUSED = "model/optimized/attention.py", "model/optimized/fused_blocks.py"
RELEASED = "tests/unit/serving/engine/test_released_memory.py"
TEST_OOM = "tests/unit/serving/engine/test_oom.py"
TEST_TIMER = "tests/unit/serving/engine/test_call_timer.py"
TEST_GRAPH = "tests/unit/model/backends/test_cuda_graph.py::test_captures_and_replays_on_its_own_device_in_one_pool"
TEST_TENSORRT = (
    "tests/unit/model/backends/test_tensorrt.py::test_each_shape_has_a_context_and_a_capture_on_the_engine_s_device"
)
TEST_ATTENTION = "tests/unit/model/optimized/test_attention.py"
TEST_DEVICE = "tests/unit/training/objectives/test_device.py"

DEFECTS = (
    Defect(
        "out of memory: a batch is tried again inside `except`, beside the failed call's activations",
        MENDED,
        (
            Edit(
                LANE,
                "            failure = error\n"
                "        if failure is not None:  # outside of the except block, in which the failed call's "
                "activations would stay alive\n"
                "            self._after_failure(jobs, failure)\n"
                "            return\n",
                "            self._after_failure(jobs, error)\n            return\n",
            ),
            Edit(
                LANE,
                "            release_traceback(error)\n            free_cached_memory()\n            if len",
                "            free_cached_memory()\n            if len",
            ),
        ),
        f"{RELEASED}::test_a_batch_is_halved_on_memory_that_is_free",
        "memory.freed_with == [0, 0]",
    ),
    Defect(
        "out of memory: an encoding, likewise",
        MENDED,
        (
            Edit(
                LANE,
                "            release_traceback(error)\n            return None\n",
                "            free_cached_memory()\n"
                "            return encode_request(job.model, job.request, job.pictures)\n",
            ),
        ),
        f"{RELEASED}::test_an_encoding_is_tried_again_on_memory_that_is_free",
        "memory.freed_with",
    ),
    Defect(
        "out of memory: a decoded chunk, likewise",
        MENDED,
        (
            Edit(
                "serving/engine/job.py",
                "                release_traceback(error)\n            else:",
                "                free_cached_memory()\n            else:",
            ),
        ),
        f"{RELEASED}::test_a_chunk_is_halved_on_memory_that_is_free",
        "memory.freed_with",
    ),
    Defect(
        "out of memory: the measurement at the start, likewise",
        MENDED,
        (
            Edit(
                WARMUP,
                "            release_traceback(error)\n        if seconds is None:\n            free_cached_memory()\n",
                "            free_cached_memory()\n        if seconds is None:\n",
            ),
        ),
        f"{RELEASED}::test_the_calibration_stops_at_what_fits_and_frees_it",
        "memory.freed_with == [0]",
    ),
    Defect(
        "out of memory: the texts of the driver, cuBLAS and cuDNN are not known",
        MENDED,
        (
            Edit(
                OOM,
                '_NO_MEMORY = ("allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", '
                '"CUDNN_STATUS_ALLOC_FAILED")',
                '_NO_MEMORY = ("allocate memory",)',
            ),
        ),
        f"{TEST_OOM}::test_every_library_s_refusal_counts_as_out_of_memory",
        "is_out_of_memory",
    ),
    Defect(
        "a sticky device error is tried again row by row, and the engine calls itself healthy",
        MENDED,
        (
            Edit(LANE, "        if is_device_failure(error):\n            raise error\n", ""),
            Edit(
                "serving/engine/loop.py",
                "            if is_device_failure(error):\n                raise  # it is nobody's fault, "
                "and would meet every job\n",
                "",
            ),
        ),
        "tests/integration/test_engine.py::"
        "test_a_device_that_failed_for_good_stops_the_engine_so_that_jobs_resume_elsewhere",
        'failure.code == "engine_stopped"',
    ),
    Defect(
        "CUDA graphs: recorded and replayed on whatever device is current",
        MENDED,
        (
            Edit(
                GRAPH,
                "        with torch.cuda.device(self._device):\n            if self._pool",
                "        if True:\n            if self._pool",
            ),
        ),
        TEST_GRAPH,
        '["cuda:1"] * 3',
    ),
    Defect(
        "CUDA graphs: each has a memory pool of its own",
        MENDED,
        (Edit(GRAPH, "graph, pool=self._pool, stream", "graph, pool=None, stream"),),
        TEST_GRAPH,
        "{(0, 1)}",
    ),
    Defect(
        "TensorRT: an allocation of the decode thread breaks a recording",
        MENDED,
        (Edit(TENSORRT, 'capture_error_mode="thread_local"', 'capture_error_mode="global"'),),
        TEST_TENSORRT,
        '{"thread_local"}',
    ),
    Defect(
        "TensorRT: one execution context for every shape that is recorded",
        MENDED,
        (
            Edit(
                TENSORRT,
                "        context = self._engine.create_execution_context(self._unallocated)\n",
                "        made = self._engine.create_execution_context\n"
                "        context = self.__dict__.get('_context') or made(self._unallocated)\n"
                "        self.__dict__['_context'] = context\n",
            ),
        ),
        TEST_TENSORRT,
        "[{2}, {1}]",
    ),
    Defect(
        "TensorRT: works on whatever device is current",
        MENDED,
        (
            Edit(
                TENSORRT,
                "        with _on(self._device):\n            return",
                "        with nullcontext():\n            return",
            ),
        ),
        TEST_TENSORRT,
        '["cuda:1"] * 2',
    ),
    Defect(
        "`--dtype auto` is float32 on a GPU, some ten times slower at full size",
        "5f30482",
        (
            Edit(
                "model/platform.py",
                'return "float16" if resolve_device(device).startswith("cuda") else "float32"',
                'return "float32"',
            ),
        ),
        "tests/unit/model/test_platform.py::test_auto_is_half_precision_where_there_is_a_gpu_to_run_on",
        '"float16" if gpus',
    ),
    Defect(
        "a call is charged with the time that its launch took, and with the call's before it",
        MENDED,
        (Edit(LANE, 'if self._start is None or device.type != "cuda":', "if True:"),),
        f"{TEST_TIMER}::test_each_call_has_its_own_seconds_one_call_late",
        "assert [",
    ),
    Defect(
        "an encoding is timed to its launch, not to its end",
        MENDED,
        (Edit(LANE, "        synchronize(job.model.checkpoint.unet.device)\n", ""),),
        f"{TEST_TIMER}::test_an_encoding_is_timed_to_its_end",
        "approx(3.0",
    ),
    Defect(
        "the measurement at the start times an encoding to its launch",
        MENDED,
        (Edit(WARMUP, "        synchronize(model.checkpoint.unet.device)\n", ""),),
        f"{TEST_TIMER}::test_the_encoding_before_the_service_is_ready_is_timed_to_its_end",
        "approx(3.0",
    ),
    Defect(
        "an offloaded network leaves the GPU while its kernels are queued",
        MENDED,
        (
            Edit(
                "model/memory/cpu_offload.py",
                "            self._synchronize()\n            with self._lock:\n"
                "                for network in networks:\n"
                "                    self._in_use[network] -= 1",
                "            with self._lock:\n                for network in networks:\n"
                "                    self._in_use[network] -= 1",
            ),
        ),
        "tests/unit/model/memory/test_cpu_offload.py::test_a_network_leaves_after_its_last_user_s_kernels",
        '["synchronize", "to cpu"]',
    ),
    Defect(
        "the service does not compile the autoencoder, the benchmark does",
        MENDED,
        (
            Edit(
                "serving/engine/loaded_model.py",
                '    if backend in COMPILED and device.type == "cuda":\n        compile_blocks(vae)\n',
                "",
            ),
        ),
        "tests/unit/serving/engine/test_loaded_model.py::test_the_autoencoder_is_compiled_beside_a_compiled_denoiser",
        '"compiled"',
    ),
    Defect(
        "attention: a kernel that does not take a call's strides ends the call",
        MENDED,
        (Edit(ATTENTION, "                self._refused.add(layout)\n", "                raise\n"),),
        f"{TEST_ATTENTION}::test_a_kernel_that_refuses_real_strides_is_replaced_by_torch_s",
        "no kernel for these strides",
    ),
    Defect(
        "attention: the kernel chosen for space is forced on time and text too",
        MENDED,
        (
            Edit(
                ATTENTION, "if self._is_default or min(query.shape[-2], key.shape[-2]) < SHORT:", "if self._is_default:"
            ),
        ),
        f"{TEST_ATTENTION}::test_frames_and_words_are_left_to_torch",
        "calls == 0",
    ),
    Defect(
        "attention: kernels are tried on contiguous tensors, which a block does not have",
        MENDED,
        (
            Edit(
                ATTENTION,
                "(part.unflatten(-1, (heads, width)).transpose(1, 2) for part",
                "(part.unflatten(-1, (heads, width)).transpose(1, 2).contiguous() for part",
            ),
        ),
        f"{TEST_ATTENTION}::test_every_usable_kernel_is_tried_on_the_strides_of_a_block",
        '"picky" not in',
    ),
    Defect(
        "attention: more than 65,535 sequences in one launch",
        MENDED,
        (Edit(ATTENTION, "        if query.shape[0] <= MAX_SEQUENCES:\n", "        if True:\n"),),
        f"{TEST_ATTENTION}::test_more_sequences_than_a_launch_takes_are_computed_in_parts",
        "[65_535, 2]",
    ),
    Defect(
        "the feed-forward's widest tensor holds a call of svd-xt to three slots",
        MENDED,
        (Edit(OOM, "    factor = _GEGLU if exported else _STACKED\n", "    factor = _GEGLU\n"),),
        f"{TEST_OOM}::test_the_widest_tensor_of_svd_xt_stays_countable",
        "== slots",
    ),
    Defect(
        "the feed-forward is one product, however many tokens there are",
        MENDED,
        (
            Edit(
                FUSED,
                "    tokens = max(1, limit // wide)\n",
                "    tokens = x.numel() if not _by_parts(x) else max(1, limit // wide)\n",
            ),
        ),
        "tests/unit/model/optimized/test_fused_blocks.py::"
        "test_a_feed_forward_is_split_where_its_numbers_could_not_be_counted",
        "max(sizes) <= largest // 3",
    ),
    Defect(
        "the feed-forward between our kernels, likewise",
        "a343573",
        (
            Edit(
                "model/optimized/kernel_blocks.py",
                "    tokens = max(1, MAX_ELEMENTS // layer.net[0].proj.out_features)\n"
                "    flat = x.reshape(-1, x.shape[-1])\n",
                "    flat = x.reshape(-1, x.shape[-1])\n    tokens = len(flat)\n",
            ),
        ),
        "tests/unit/model/optimized/test_kernels.py::"
        "test_a_feed_forward_is_split_where_its_numbers_could_not_be_counted",
        "max(sizes) <= 4096",
    ),
    Defect(
        "training of an autoencoder: crops stay on the CPU",
        "8808308",
        (
            Edit(
                "training/objectives/vae.py",
                "self.crops(step, count // frames, frames).to(self.device)",
                "self.crops(step, count // frames, frames)",
            ),
        ),
        f"{TEST_DEVICE}::test_a_loss_is_computed_where_the_network_is[autoencoder]",
        "Error",
    ),
    Defect(
        "training of a decoder: noise stays on the CPU",
        "8808308",
        (
            Edit(
                "training/objectives/decoder.py",
                "torch.randn(latents.shape, generator=draw).to(self.device)",
                "torch.randn(latents.shape, generator=draw)",
            ),
        ),
        f"{TEST_DEVICE}::test_a_loss_is_computed_where_the_network_is[fitted_decoder]",
        "Error",
    ),
    Defect(
        "training of an image encoder: labels stay on the CPU",
        "8808308",
        (
            Edit(
                "training/objectives/contrastive.py",
                "labels = torch.arange(len(first), device=device)",
                "labels = torch.arange(len(first))",
            ),
        ),
        f"{TEST_DEVICE}::test_a_loss_is_computed_where_the_network_is[contrastive]",
        "Error",
    ),
    Defect(
        "latents are encoded on the CPU",
        "8808308",
        (
            Edit(
                "training/data/latents.py",
                "to_pixels(clip.frames[first : first + 16]).to(vae.device)",
                "to_pixels(clip.frames[first : first + 16])",
            ),
        ),
        f"{TEST_DEVICE}::test_latents_are_encoded_where_the_autoencoder_is_and_stored_on_the_cpu",
        "pixels.device == META",
    ),
    Defect(
        "a recipe leaves its autoencoder on the CPU",
        "8808308",
        (
            Edit(
                "training/train.py",
                "        return VAEObjective(config, clips, join_processes())\n",
                "        return VAEObjective(config, clips)\n",
            ),
        ),
        f"{TEST_DEVICE}::test_a_recipe_s_networks_go_to_the_device_of_the_process[mini_vae]",
        "== {META}",
    ),
    Defect(
        "a GPU's convolutions are not timed (`cudnn.benchmark`)",
        "a343573",
        (
            Edit(
                "model/backends/registry.py",
                "        torch.backends.cudnn.benchmark = not cores.pinned",
                "        torch.backends.cudnn.benchmark = False",
            ),
        ),
        "tests/unit/model/test_platform.py::test_an_engine_on_a_gpu_has_its_convolutions_timed",
        "benchmark",
    ),
    Defect(
        "CLIP's processor is another where torchvision is installed",
        "b121558",
        (
            Edit(
                "model/encoders.py",
                "        from transformers import CLIPImageProcessorPil as Processor\n",
                "        from transformers import CLIPImageProcessor as Processor\n",
            ),
        ),
        "tests/unit/model/test_conditioning.py::test_no_picture_goes_through_a_processor_of_the_library_s",
        "processor.__name__ in",
    ),
    Defect(
        "pictures reach CLIP through that processor",
        "b121558",
        (
            Edit(
                "model/conditioning/__init__.py",
                "    normalised = clip_input(pixels, encoder.mean, encoder.std)\n",
                "    from model.encoders import clip_image_processor\n\n"
                "    processor = clip_image_processor(encoder.mean, encoder.std)\n"
                "    normalised = processor((pixels + 1) / 2, do_rescale=False, return_tensors='pt').pixel_values\n",
            ),
        ),
        "tests/unit/model/test_conditioning.py::test_no_picture_goes_through_a_processor_of_the_library_s",
        "a processor was called",
    ),
    Defect(
        "an mp4 is encoded only when the last chunk is decoded",
        "0154dae",
        (
            Edit(
                "serving/engine/loop.py",
                "        if job.encoder is not None:\n            job.encoder.add(job.decoding.chunks[-1])\n"
                "        if complete:\n",
                "        if job.encoder is not None and complete:\n            for chunk in job.decoding.chunks:\n"
                "                job.encoder.add(chunk)\n        if complete:\n",
            ),
        ),
        "tests/unit/serving/engine/test_mux.py::test_the_loop_hands_on_each_chunk_when_it_is_decoded",
        "assert [",
    ),
)
