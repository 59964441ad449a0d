"""Posteriors as ArviZ containers: conversion, storage and summaries."""
