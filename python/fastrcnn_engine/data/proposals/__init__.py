"""Region proposals: the methods that make them, the file they are kept in, readers of others'."""

from fastrcnn_engine.data.proposals.compute import compute_proposals
from fastrcnn_engine.data.proposals.dense_boxes import dense_boxes
from fastrcnn_engine.data.proposals.edge_boxes import edge_boxes
from fastrcnn_engine.data.proposals.others import read_voc_mat
from fastrcnn_engine.data.proposals.recall import proposal_recall
from fastrcnn_engine.data.proposals.search import Search
from fastrcnn_engine.data.proposals.selective_search import selective_search
from fastrcnn_engine.data.proposals.store import ProposalStore, write_proposals

__all__ = [
    "ProposalStore",
    "Search",
    "compute_proposals",
    "dense_boxes",
    "edge_boxes",
    "proposal_recall",
    "read_voc_mat",
    "selective_search",
    "write_proposals",
]
