//! sixway
