"""The speech study: "Beyond Transcription" (Glazer et al. 2025) on a Whisper of the user's own."""
