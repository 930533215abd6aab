"""Spoken benchmarks as they lie on a disk: OpenAudioBench, VoiceBench and URO-Bench, each read to the same queries."""
