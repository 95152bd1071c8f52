"""The suites that LLM2Vec's tables are over, by MTEB's names of their tasks, and those tables.

Source: BehnamGhader et al. 2024 (arXiv 2404.05961), tables 1, 3 and 8 and appendix F. Values are MTEB's main metrics
times 100. Knows names and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: The kinds of tasks in the order of the paper's columns.
KINDS = ("Retrieval", "Reranking", "Clustering", "PairClassification", "Classification", "STS", "Summarization")
COLUMNS = ("Retr", "Rerank", "Clust", "Pair", "Class", "STS", "Summ", "Avg")

#: All 56 English sets of MTEB's first edition.
PAPER_56: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Retrieval": (
            *("ArguAna", "ClimateFEVER", "CQADupstackRetrieval", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO"),
            *("NFCorpus", "NQ", "QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020", "TRECCOVID"),
        ),
        "Reranking": ("AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions"),
        "Clustering": (
            *("ArxivClusteringP2P", "ArxivClusteringS2S", "BiorxivClusteringP2P", "BiorxivClusteringS2S"),
            *("MedrxivClusteringP2P", "MedrxivClusteringS2S", "RedditClustering", "RedditClusteringP2P"),
            *("StackExchangeClustering", "StackExchangeClusteringP2P", "TwentyNewsgroupsClustering"),
        ),
        "PairClassification": ("SprintDuplicateQuestions", "TwitterSemEval2015", "TwitterURLCorpus"),
        "Classification": (
            *("AmazonCounterfactualClassification", "AmazonPolarityClassification", "AmazonReviewsClassification"),
            *("Banking77Classification", "EmotionClassification", "ImdbClassification", "MassiveIntentClassification"),
            *("MassiveScenarioClassification", "MTOPDomainClassification", "MTOPIntentClassification"),
            *("ToxicConversationsClassification", "TweetSentimentExtractionClassification"),
        ),
        "STS": (*("BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22", "STSBenchmark"),),
        "Summarization": ("SummEval",),
    }
)

#: The 15 sets that the paper's ablations are over.
PAPER_15: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Retrieval": ("SciFact", "ArguAna", "NFCorpus"),
        "Reranking": ("StackOverflowDupQuestions", "SciDocsRR"),
        "Clustering": ("BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering"),
        "PairClassification": ("SprintDuplicateQuestions",),
        "Classification": ("Banking77Classification", "EmotionClassification", "MassiveIntentClassification"),
        "STS": ("STS17", "SICK-R", "STSBenchmark"),
    }
)

SUITES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"mteb-paper-15": PAPER_15, "mteb-paper-56": PAPER_56}
)

#: Unsupervised, 56 sets, in the order of COLUMNS.
PAPER_TABLE: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "BERT": (10.59, 43.44, 30.12, 56.33, 61.66, 54.36, 29.82, 38.33),
        "BERT + SimCSE": (20.29, 46.47, 29.04, 70.33, 62.50, 74.33, 31.15, 45.45),
        "S-LLaMA-1.3B Uni + w. mean": (9.47, 38.02, 28.02, 42.19, 59.79, 49.15, 24.98, 35.05),
        "S-LLaMA-1.3B LLM2Vec w/o SimCSE": (15.48, 40.99, 31.83, 50.63, 64.54, 62.06, 26.82, 41.43),
        "S-LLaMA-1.3B LLM2Vec": (25.93, 47.70, 37.45, 72.21, 67.67, 71.61, 31.23, 49.42),
        "S-LLaMA-1.3B Echo": (10.36, 41.52, 30.03, 52.08, 63.75, 59.36, 22.79, 39.10),
        "LLaMA-2-7B Uni + w. mean": (15.16, 46.94, 36.85, 61.41, 69.05, 63.42, 26.64, 44.54),
        "LLaMA-2-7B LLM2Vec w/o SimCSE": (19.86, 44.74, 35.31, 61.60, 67.94, 66.74, 26.83, 45.70),
        "LLaMA-2-7B LLM2Vec": (36.75, 52.95, 40.83, 77.89, 71.57, 76.41, 31.38, 55.36),
        "LLaMA-2-7B Echo": (16.16, 46.84, 34.25, 63.54, 69.82, 67.95, 25.57, 45.36),
        "Mistral-7B Uni + w. mean": (10.43, 45.11, 35.82, 60.28, 71.14, 58.59, 26.57, 42.46),
        "Mistral-7B Bi + mean": (15.84, 47.40, 35.55, 66.53, 72.18, 71.04, 29.93, 46.86),
        "Mistral-7B LLM2Vec w/o SimCSE": (19.74, 50.43, 40.06, 70.95, 72.51, 71.90, 27.84, 49.43),
        "Mistral-7B LLM2Vec": (38.05, 53.99, 40.63, 80.94, 74.07, 78.50, 30.19, 56.80),
        "Mistral-7B Echo": (22.68, 51.07, 36.78, 75.87, 72.69, 73.60, 29.54, 50.26),
        "Llama-3-8B Uni + w. mean": (15.17, 46.22, 36.84, 60.94, 67.41, 62.80, 25.51, 43.98),
        "Llama-3-8B Bi + mean": (3.90, 34.56, 14.27, 42.71, 57.89, 51.15, 23.26, 30.56),
        "Llama-3-8B LLM2Vec w/o SimCSE": (24.75, 49.20, 39.74, 65.91, 69.00, 67.85, 25.99, 48.84),
        "Llama-3-8B LLM2Vec": (39.19, 53.09, 41.99, 78.01, 71.88, 75.86, 31.45, 56.23),
        "Llama-3-8B Echo": (12.58, 49.79, 36.32, 68.95, 70.22, 67.43, 26.44, 45.32),
    }
)

POOLINGS = ("EOS", "mean", "weighted mean")
#: The 15 sets' average by model, kind of encoder, and pooling in the order of POOLINGS.
PAPER_POOLING: Mapping[str, Mapping[str, tuple[float, float, float]]] = MappingProxyType(
    {
        "S-LLaMA-1.3B": {
            "Uni": (27.72, 33.03, 34.99),
            "Bi": (21.16, 30.26, 30.20),
            "Bi + MNTP": (29.16, 42.10, 38.67),
            "Uni + SimCSE": (37.44, 44.95, 47.13),
            "Bi + SimCSE": (40.43, 44.46, 44.83),
            "Bi + MNTP + SimCSE": (45.57, 52.40, 50.23),
        },
        "LLaMA-2-7B": {
            "Uni": (33.23, 45.83, 47.85),
            "Bi": (34.47, 38.22, 37.50),
            "Bi + MNTP": (32.66, 48.00, 44.30),
            "Uni + SimCSE": (38.47, 52.03, 53.55),
            "Bi + SimCSE": (40.37, 44.13, 44.08),
            "Bi + MNTP + SimCSE": (50.61, 58.97, 55.75),
        },
        "Mistral-7B": {
            "Uni": (22.12, 43.00, 44.01),
            "Bi": (25.17, 50.07, 45.20),
            "Bi + MNTP": (26.54, 53.89, 48.93),
            "Uni + SimCSE": (34.60, 52.04, 53.95),
            "Bi + SimCSE": (49.73, 60.29, 56.56),
            "Bi + MNTP + SimCSE": (53.67, 60.50, 57.55),
        },
    }
)


def tasks_of(suite: str) -> tuple[str, ...]:
    """The names of a suite's tasks, kind by kind."""
    return tuple(name for names in SUITES[suite].values() for name in names)
