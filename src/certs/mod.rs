//! SNI → certificate and key.
