"""Captions: what a picture of shapes world shows, in words that the picture all but decides.

Things are named in reading order, by the left top corner from top to bottom and in a row from left to right; those
that look alike are named together, where the first of them stands. The size is said of what is large, the fill of what
is outlined, the background always, and nothing that a layout does not decide.
"""

from typing import NamedTuple

from pdgen.shapes.graph import Entity, SceneGraph, place_of_all
from pdgen.shapes.phrases import scene as phrase
from pdgen.shapes.world import Object, Scene

FORM = "The picture shows {}."


class Group(NamedTuple):
    """The things of a scene that look alike, as an entity with all their attributes but the place."""

    entity: Entity
    objects: tuple[Object, ...]


def groups(scene: Scene, places: bool = False) -> list[Group]:
    """The things of a scene by their looks, in reading order; the entities' ids are 0, 1, ....

    Args:
      places: the entities say where each of their things stands.
    """
    found: dict[tuple[str, ...], list[Object]] = {}
    for item in sorted(scene.objects, key=lambda o: (o.y, o.x)):
        key = (item.shape, item.color, item.size_word, item.fill)
        found.setdefault(key, []).append(item)
    made = []
    for number, ((shape, color, size, fill), objects) in enumerate(found.items()):
        attributes = {"color": color, "size": size, "fill": fill}
        if places:
            attributes["place"] = place_of_all(o.place for o in objects)
        made.append(Group(Entity(number, shape, len(objects), attributes), tuple(objects)))
    return made


def seen(scene: Scene, places: bool = False) -> SceneGraph:
    """What a caption says of a scene: all things in reading order, and the background.

    Args:
      places: it says where everything stands.
    """
    return SceneGraph(tuple(_said(group.entity) for group in groups(scene, places)), (), scene.background)


def _said(entity: Entity) -> Entity:
    left_out = {("size", "small"), ("size", "medium"), ("fill", "solid")}
    attributes = {k: v for k, v in entity.attributes.items() if (k, v) not in left_out}
    return Entity(entity.id, entity.noun, entity.count, attributes)


def caption(scene: Scene, places: bool = False) -> str:
    """``seen`` as a sentence: "The picture shows a large red circle and two blue stars on a beige background."."""
    graph = seen(scene, places)
    text, _ = phrase(graph, [e.id for e in graph.entities])
    return FORM.format(text)
