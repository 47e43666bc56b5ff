"""Pictures of an evaluation: originals beside virtual faces, and a map of the recogniser's space.

They show real people and are for the eyes of whoever has the photos: most collections of faces may not be
published.
"""

from __future__ import annotations

import colorsys
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.evaluation_keys import OWN, SHARED
from keyface.pipeline.measure.people_render import Rendered, Task
from keyface.pipeline.measure.people_table import PeopleTable, Row
from keyface.pipeline.measure.verification import F64
from keyface.pipeline.media.contact_sheet import contact_sheet, write_picture
from keyface.pipeline.media.photo import read_photo

_PEOPLE_A_SHEET, _MOST_SHEETS, _PHOTOS_A_ROW = 8, 4, 2
_MAP_PEOPLE, _MAP_PX, _MAP_EDGE_PX = 10, 900, 40
_PAPER, _INK = (250, 250, 250), (40, 40, 40)


def write_pictures(folder: Path, table: PeopleTable, rendered: Rendered, judge: str) -> list[str]:
    """Contact sheets and a t-SNE map (IVFG figure 6) into a folder.

    Args:
        judge: the recogniser whose embeddings are mapped.

    Returns:
        What could not be drawn and why, in sentences.

    Raises:
        SinkError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"Folder '{folder}' cannot be made: {error.strerror}.", "Make room.") from error
    rows = [sheet_row(table, rendered, name) for name in table.names[: _PEOPLE_A_SHEET * _MOST_SHEETS]]
    for first in range(0, len(rows), _PEOPLE_A_SHEET):
        sheet = contact_sheet(rows[first : first + _PEOPLE_A_SHEET], cell_px=180)
        write_picture(folder / f"faces-{first // _PEOPLE_A_SHEET + 1}.jpg", sheet)
    if importlib.util.find_spec("sklearn") is None:
        return ["no t-SNE map without scikit-learn: pip install 'keyface[evaluate]'."]
    drawn = tsne_map(table, judge)
    if drawn is None:
        return ["no t-SNE map: too few photos."]
    write_picture(folder / f"tsne-{judge}.png", drawn)
    return []


def sheet_row(table: PeopleTable, rendered: Rendered, person: str) -> tuple[str, list[ImageRgb]]:
    """One person: original, shared key, own key, of the first photos."""
    own = [row for row in table.rows if row.photo.person == person][:_PHOTOS_A_ROW]
    pictures = [picture for row in own for picture in _three(row, rendered)]
    return f"{person}: original, shared key, own key", pictures


def _three(row: Row, rendered: Rendered) -> list[ImageRgb]:
    paths = [rendered.path(Task(row.photo, condition)) for condition in (SHARED, OWN)]
    return [read_photo(path)[0].image_rgb for path in (row.photo.path, *paths)]


def tsne_map(table: PeopleTable, judge: str) -> ImageRgb | None:
    """t-SNE of originals (circles), virtual faces under the shared key (squares) and under their own keys
    (triangles), a colour a person, of those with most photos. uint8 (H, W, 3), or None with under 12 faces.
    """
    from sklearn.manifold import TSNE

    counts = np.bincount(table.people, minlength=table.n_people)
    chosen = [int(p) for p in np.argsort(-counts, kind="stable")[:_MAP_PEOPLE]]
    vectors: list[F64] = []
    marks: list[tuple[int, int]] = []
    for kind, view in enumerate((table.original, table.conditions[SHARED], table.conditions[OWN])):
        for row in np.flatnonzero(np.isin(table.people, chosen) & view.is_usable):
            vectors.append(view.embeddings[judge][row])
            marks.append((chosen.index(int(table.people[row])), kind))
    if len(vectors) < 12:
        return None
    perplexity = min(15.0, (len(vectors) - 1) / 3)
    placed = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(
        np.stack(vectors)
    )
    return _draw_map(np.asarray(placed, np.float64), marks, f"t-SNE, {judge}")


def _draw_map(points: F64, marks: Sequence[tuple[int, int]], title: str) -> ImageRgb:
    low, high = points.min(0), points.max(0)
    inner = _MAP_PX - 2 * _MAP_EDGE_PX
    places = _MAP_EDGE_PX + (points - low) / np.maximum(high - low, 1e-9) * inner
    image = Image.new("RGB", (_MAP_PX, _MAP_PX), _PAPER)
    draw = ImageDraw.Draw(image)
    legend = f"{title}: circles originals, squares one key for all, triangles a key for each"
    draw.text((10, 8), legend, _INK, ImageFont.load_default(14))
    for (x, y), (person, kind) in zip(places.tolist(), marks, strict=True):
        red, green, blue = colorsys.hsv_to_rgb(person / _MAP_PEOPLE, 0.8, 0.85)
        colour, r = (round(255 * red), round(255 * green), round(255 * blue)), 6
        if kind == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), colour, _INK)
        elif kind == 1:
            draw.rectangle((x - r, y - r, x + r, y + r), colour, _INK)
        else:
            draw.polygon([(x, y - r - 1), (x - r - 1, y + r), (x + r + 1, y + r)], colour, _INK)
    return np.asarray(image).copy()
