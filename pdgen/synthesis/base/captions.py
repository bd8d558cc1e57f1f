"""Captions of pictures of shapes world, whose wording the picture determines almost completely.

Things are named in reading order of their top left corners: from top to bottom, then from left to right. Things with
equal looks are named together, at the position of the first. A caption states "large" and "outlined" but no other size
or fill, and always the background.
"""

from typing import NamedTuple

from pdgen.shapes.graph import Entity, SceneGraph, join_places
from pdgen.shapes.phrases import join_clauses, phrase_look, phrase_placed, phrase_scene
from pdgen.shapes.world import Scene, SceneObject


class ObjectGroup(NamedTuple):
    """The objects of a scene with equal looks, and an entity with their attributes."""

    entity: Entity
    objects: tuple[SceneObject, ...]


def group_objects(scene: Scene, places: bool = False) -> list[ObjectGroup]:
    """Group the objects of a scene by looks, in reading order.

    The entities' ids are 0, 1, ...; with ``places`` they have the places of their objects.
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
    """Make the graph of a caption: all things in reading order, with ``places`` or without, and the background."""
    left_out = {("size", "small"), ("size", "medium"), ("fill", "solid")}
    entities = []
    for entity, _ in group_objects(scene, places):
        attributes = {k: v for k, v in entity.attributes.items() if (k, v) not in left_out}
        entities.append(Entity(entity.id, entity.noun, entity.count, attributes))
    return SceneGraph(tuple(entities), (), scene.background)


def write_caption(scene: Scene, places: bool = False) -> str:
    """Write ``make_caption_graph`` as a sentence: "The picture shows a red circle on a beige background."."""
    return _phrase(make_caption_graph(scene, places))


def _phrase(graph: SceneGraph) -> str:
    text, _ = phrase_scene(graph, [e.id for e in graph.entities])
    return f"The picture shows {text}."


def write_report(scene: Scene, plan: SceneGraph, faulty: int | None = None) -> str:
    """Describe a picture in the words of its plan, so that a fault is a word that differs.

    Entities come in the plan's order, each with the attributes that the plan states, as the picture shows them.
    Colours, places and the background are always stated. The entity that is ``faulty`` is called wrong, or "no red
    circle" if it is not there. So the verdict that follows need not compare the whole report with the plan.
    """
    clauses = []
    for planned in plan.entities:
        entity = _describe_shown(scene, planned)
        if entity is None:
            clauses.append(f"no {phrase_look(planned)}")
            continue
        clauses.append(phrase_placed(entity) + ", which is wrong" * (entity.id == faulty))
    if len(clauses) == 1 and clauses[0].endswith("wrong"):
        clauses[0] += ","  # before the background
    # Every report has commas: otherwise the first one would reveal a fault before the words that name it.
    return f"The picture shows {join_clauses(clauses, scene.background, long=True)}."


def _describe_shown(scene: Scene, planned: Entity) -> Entity | None:
    """Return an entity as the scene shows it, with the attributes that its plan states; None if it is not there."""
    objects = sorted(scene.objects_of(planned.id), key=lambda o: (o.y, o.x))
    if not objects:
        return None
    looks = {"color": objects[0].color, "size": objects[0].size_word, "fill": objects[0].fill}
    attributes = {name: word for name, word in looks.items() if name in {*planned.attributes, "color"}}
    attributes["place"] = join_places(o.place for o in objects)
    return Entity(planned.id, objects[0].shape, len(objects), attributes)
