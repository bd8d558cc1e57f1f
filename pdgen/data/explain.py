"""Explanations of a pack of a run or of one record: its slots, with the stages and records they come from."""

import numpy as np

from pdgen.config import ModelConfig
from pdgen.data.lengths import locate_record
from pdgen.data.loader import Batches
from pdgen.data.packing import Document
from pdgen.sequence.explanation import ExplainedDocument, ExplainedPack, document_runs, stream_of_slots
from pdgen.sequence.layout import Budgets, assemble, lay_out
from pdgen.sequence.segments import CLEAN, NOISED, TEXT, document_units, list_turns, record_segments
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Record

_COPIES = {TEXT: "text", NOISED: "noised VAE copy", CLEAN: "clean VAE copy"}  # all other units are ViT copies


def explain_pack(batches: Batches, number: int) -> ExplainedPack:
    """Explain pack ``number``. Broken records are left out, as in training.

    Raises:
      RecordError, LoaderError: see ``Batches.lay_out_pack``.
    """
    layouts, skipped = batches.lay_out_pack(number)
    pack, budgets = batches.assemble(layouts, number), batches.settings.budgets
    chosen = [document for document in batches.packer.choose_documents(number) if document.record not in skipped]
    documents = [side for document in chosen for side in batches.list_sides(document)]
    starts = np.cumsum([0, *(len(laid_out.stream) for laid_out in layouts)])
    explained = []
    for document, laid_out, start in zip(documents, layouts, starts):
        record = batches.source[document.record]
        units = document_units(record, batches.tokenizer, document.turns, batches.settings.draws)
        stages = [record.segments[segment].stage for (segment, _), keep in zip(units, document.keep) if keep]
        dropped = [
            f"{_COPIES.get(kind, 'ViT copy')} of segment {segment} ({record.segments[segment].stage})"
            for (segment, kind), keep in zip(units, document.keep)
            if not keep
        ]
        explained.append(
            ExplainedDocument(
                record=record.id,
                name=locate_record(batches.source, document.record),
                epoch=document.epoch,
                turns=_describe_turns(record, document),
                dropped=tuple(dropped),
                runs=document_runs(pack, batches.tokenizer, int(start), laid_out.split, stages),
            )
        )
    intervals = np.stack([pack.k_start, pack.k_end, pack.q_start, pack.q_end])
    return ExplainedPack(number, budgets, tuple(explained), stream_of_slots(pack), intervals)


def explain_record(record: Record, tokenizer: Tokenizer, config: ModelConfig) -> ExplainedDocument:
    """Explain a record with latents as one whole document that starts at slot 0, without condition dropout.

    Raises:
      SegmentError: the record does not fit the model.
    """
    laid_out = lay_out(record_segments(record, tokenizer, config), tokenizer, config)
    pack = assemble([laid_out], Budgets(*laid_out.lengths), 0)
    stages = [record.segments[segment].stage for segment, _ in document_units(record, tokenizer)]
    runs = document_runs(pack, tokenizer, 0, laid_out.split, stages)
    return ExplainedDocument(record.id, record.source, epoch=0, turns="whole", dropped=(), runs=runs)


def _describe_turns(record: Record, document: Document) -> str:
    first, stop = document.turns
    count = len(list_turns(record))
    if (first, stop) == (0, count):
        return "whole"
    return f"turn {stop} of {count}" if stop - first == 1 else f"turns {first + 1} to {stop} of {count}"
