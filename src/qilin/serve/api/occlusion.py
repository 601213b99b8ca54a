"""Which regions of an image an answer depends on: the answer's log probability with each region blanked.

In: a conversation, its answer, and the image to examine. Out: for each cell of a grid, how much the log probability of
the answer falls when the cell is blanked. It shows what the model used, not whether it was right to.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from qilin.core.errors import UserError
from qilin.model.generate import Request
from qilin.serve.engine.engine import Engine, Event, Finish, GenerationRequest, max_answer_tokens
from qilin.serve.engine.prompt import prepare_prompt

# what the page says with a map: bench/results/occlusion.json
MEASURED = {
    "text_zh": "在绘制图像上测得：回答正确时，颜色最深的一格有 89 % 落在病变上（随机一格 10 %）；"
    "回答错误时也会指向病变。没有在真实图像上测过。",
    "text_en": "Measured on drawn images: for 89 % of right answers, the strongest cell lies on the finding (a random "
    "cell: 10 %); for wrong ones it may too. It was not measured on real images.",
}
GRID = 7  # cells on the longer side
AT_ONCE = 8  # cells in the engine's queue at a time: other users' requests stay quick


async def occlusion_map(
    engine: Engine, request: Request, image_index: int, answer: str, owner: str
) -> AsyncIterator[dict[str, Any]]:
    """First {"rows", "columns"} with MEASURED, then {"cell", "drop"} for each cell as it is done.

    Raises UserError, RuntimeError.
    """
    tokenizer = engine.loaded.processor.tokenizer
    answer_ids = tuple(tokenizer(answer, add_special_tokens=False).input_ids)
    image = request.images[image_index]
    boxes, columns, rows = grid_boxes(image.width, image.height)
    yield {"rows": rows, "columns": columns, **MEASURED}
    intact = await score(engine, request, answer_ids, owner)
    pending: dict[asyncio.Task[float], int] = {}
    try:
        for cell, box in enumerate(boxes):
            images = list(request.images)
            images[image_index] = blank(image, box)
            task = asyncio.ensure_future(score(engine, replace(request, images=images), answer_ids, owner))
            pending[task] = cell
            while len(pending) >= AT_ONCE or (cell == len(boxes) - 1 and pending):
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield {"cell": pending.pop(task), "drop": intact - task.result()}
    finally:
        for task in pending:
            task.cancel()


async def score(engine: Engine, request: Request, answer_ids: tuple[int, ...], owner: str) -> float:
    """The log probability of an answer. Raises UserError where it does not fit, RuntimeError where the model failed."""
    prompt = await asyncio.to_thread(prepare_prompt, engine.loaded, request, answer_ids)
    if max_answer_tokens(engine, prompt, 1) < 1:
        raise UserError(
            f"messages: {len(prompt.ids)} tokens, images and answer included, are more than the model takes"
        )
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Finish] = loop.create_future()

    def receive(event: Event) -> None:
        if isinstance(event, Finish) and not future.done():  # the client may have gone
            future.set_result(event)

    job = engine.submit(GenerationRequest(prompt, 0, owner=owner, answer_ids=answer_ids), receive, loop)
    try:
        finish = await future
    finally:
        job.cancel()
    if finish.error or not finish.logprobs:
        raise RuntimeError(finish.error or "the answer was not scored")
    return sum(finish.logprobs)


def grid_boxes(width: int, height: int) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """(boxes row by row, columns, rows): nearly square cells, GRID on the longer side."""
    cell = max(width, height) / GRID
    columns, rows = max(1, round(width / cell)), max(1, round(height / cell))
    xs = [round(width * index / columns) for index in range(columns + 1)]
    ys = [round(height * index / rows) for index in range(rows + 1)]
    boxes = [(xs[x], ys[y], xs[x + 1], ys[y + 1]) for y in range(rows) for x in range(columns)]
    return boxes, columns, rows


def blank(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The image with a box in its mean color."""
    changed = image.copy()
    mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0]
    changed.paste(tuple(int(value) for value in mean), box)
    return changed
