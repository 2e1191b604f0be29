"""The core of retr: contracts, data on disk, search and evaluation.

from retrieval import Query, Searcher, evaluate, open_embeddings

searcher = Searcher.open("photos-index")
for hit in searcher.search_images(["query.jpg"], k=10)[0]:
    print(hit.rank, hit.distance, hit.path)

dusk = Query(images="query.jpg", texts="at night", without="people")
hits = searcher.search(dusk, k=10)[0]

result = evaluate(open_embeddings("test-embeddings"), open_embeddings("train-embeddings"))
print(result.map, result.precision_at[10])
"""

from typing import TYPE_CHECKING

from retrieval.lazy import lazy_names

if TYPE_CHECKING:
    from retrieval.embedding.query import Query as Query
    from retrieval.embedding.query import Weights as Weights
    from retrieval.index.build import build_index as build_index
    from retrieval.index.fan_out import Tolerance as Tolerance
    from retrieval.index.folder import open_index as open_index
    from retrieval.index.on_ray import Cluster as Cluster
    from retrieval.index.searching import Searcher as Searcher
    from retrieval.quality.evaluation import evaluate as evaluate
    from retrieval.quality.labelled import Labelled as Labelled
    from retrieval.registry import open_encoder as open_encoder
    from retrieval.storage.sets.embeddings import open_embeddings as open_embeddings

# Imported when first used: numpy and pyarrow take longer to load than `retr --help` may.
_HOMES = {
    "Cluster": "index.on_ray",
    "Labelled": "quality.labelled",
    "Query": "embedding.query",
    "Searcher": "index.searching",
    "Tolerance": "index.fan_out",
    "Weights": "embedding.query",
    "build_index": "index.build",
    "evaluate": "quality.evaluation",
    "open_embeddings": "storage.sets.embeddings",
    "open_encoder": "registry",
    "open_index": "index.folder",
}
__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
