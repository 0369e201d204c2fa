"""Region proposals: the methods that make them, the file they are kept in, readers of others'."""

from fastrcnn_engine.data.proposals.compute import compute_proposals
from fastrcnn_engine.data.proposals.dense_boxes import dense_boxes
from fastrcnn_engine.data.proposals.edge_boxes import edge_boxes
from fastrcnn_engine.data.proposals.merge import Merged, merge_proposals
from fastrcnn_engine.data.proposals.others import ProposalFile, read_proposals
from fastrcnn_engine.data.proposals.recall import proposal_recall
from fastrcnn_engine.data.proposals.search import Search
from fastrcnn_engine.data.proposals.selective_search import selective_search
from fastrcnn_engine.data.proposals.store import ProposalStore, write_proposals

__all__ = [
    "Merged",
    "ProposalFile",
    "ProposalStore",
    "Search",
    "compute_proposals",
    "dense_boxes",
    "edge_boxes",
    "merge_proposals",
    "proposal_recall",
    "read_proposals",
    "selective_search",
    "write_proposals",
]
