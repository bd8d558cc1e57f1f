"""Captions: what a picture of shapes world shows, in words that the picture all but decides.

Things are named in reading order, by the left top corner from top to bottom and in a row from left to right; those
that look alike are named together, where the first of them stands. The size is said of what is large, the fill of what
is outlined, the background always, and nothing that a layout does not decide.
"""

from typing import NamedTuple

from pdgen.shapes.graph import Entity, SceneGraph, join_places
from pdgen.shapes.phrases import phrase_scene as phrase
from pdgen.shapes.world import Scene, SceneObject

FORM = "The picture shows {}."


class ObjectGroup(NamedTuple):
    """The things of a scene that look alike, as an entity with all their attributes but the place."""

    entity: Entity
    objects: tuple[SceneObject, ...]


def group_objects(scene: Scene, places: bool = False) -> list[ObjectGroup]:
    """The things of a scene by their looks, in reading order; the entities' ids are 0, 1, ....

    Args:
      places: the entities say where each of their things stands.
    """
    found: dict[tuple[str, ...], list[SceneObject]] = {}
    for item in sorted(scene.objects, key=lambda o: (o.y, o.x)):
        key = (item.shape, item.color, item.size_word, item.fill)
        found.setdefault(key, []).append(item)
    made = []
    for number, ((shape, color, size, fill), objects) in enumerate(found.items()):
        attributes = {"color": color, "size": size, "fill": fill}
        if places:
            attributes["place"] = join_places(o.place for o in objects)
        made.append(ObjectGroup(Entity(number, shape, len(objects), attributes), tuple(objects)))
    return made


def make_caption_graph(scene: Scene, places: bool = False) -> SceneGraph:
    """What a caption says of a scene: all things in reading order, and the background.

    Args:
      places: it says where everything stands.
    """
    return SceneGraph(
        tuple(_drop_defaults(group.entity) for group in group_objects(scene, places)), (), scene.background
    )


def _drop_defaults(entity: Entity) -> Entity:
    left_out = {("size", "small"), ("size", "medium"), ("fill", "solid")}
    attributes = {k: v for k, v in entity.attributes.items() if (k, v) not in left_out}
    return Entity(entity.id, entity.noun, entity.count, attributes)


def write_caption(scene: Scene, places: bool = False) -> str:
    """``make_caption_graph`` as a sentence: "The picture shows a large red circle and two blue stars on a beige background."."""
    graph = make_caption_graph(scene, places)
    text, _ = phrase(graph, [e.id for e in graph.entities])
    return FORM.format(text)
