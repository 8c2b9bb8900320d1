//! Sets of keys (JWKS, RFC 7517): those of them that tokens can be checked with.

use super::verifying_key::VerifyingKey;

/// Most keys of a set that are looked at.
const KEYS_MAX: usize = 256;

/// The keys of a set that can check tokens (RFC 7517, section 5: others are left out). None, if it
/// says that there are none.
///
/// # Errors
/// When it is no set, or holds keys of which none can be used, in words.
pub fn key_set(text: &str) -> Result<Vec<VerifyingKey>, String> {
    const HINT: &str = "give the JSON object with its `keys`";
    let set: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("{error}; {HINT}"))?;
    let keys = set.get("keys").and_then(serde_json::Value::as_array).ok_or(HINT)?;
    let mut last = "none is for signatures".to_owned();
    let mut usable = Vec::new();
    for key in keys.iter().take(KEYS_MAX) {
        if !may_verify(key) {
            continue;
        }
        // The library's words quote what it does not expect, which may be secret.
        let read = serde_json::from_value(key.clone())
            .map_err(|_| "it is not written as RFC 7517 describes keys".to_owned());
        match read.and_then(|jwk| VerifyingKey::of_jwk(&jwk)) {
            Ok(key) => usable.push(key),
            Err(what) => last = what,
        }
    }
    if usable.is_empty() && !keys.is_empty() {
        return Err(format!("no key in it can be used: {last}"));
    }
    Ok(usable)
}

/// Whether a key is for signatures (RFC 7517, sections 4.2 and 4.3).
fn may_verify(key: &serde_json::Value) -> bool {
    let usage = key.get("use").and_then(serde_json::Value::as_str);
    let operations = key.get("key_ops").and_then(serde_json::Value::as_array);
    usage.is_none_or(|usage| usage == "sig")
        && operations.is_none_or(|all| all.iter().any(|operation| operation == "verify"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_without_keys_is_one_and_a_set_of_others_is_not() {
        assert_eq!(key_set("{\"keys\": []}").map(|keys| keys.len()), Ok(0));
        let ours = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
        let with = |name: &str, value: serde_json::Value| {
            let mut key = ours.clone();
            key[name] = value;
            key_set(&serde_json::json!({ "keys": [key] }).to_string()).map(|keys| keys.len())
        };
        assert_eq!(with("use", "sig".into()), Ok(1));
        assert_eq!(with("alg", "EdDSA".into()), Ok(1));
        for (name, value) in [
            ("use", "enc".into()),
            ("key_ops", serde_json::json!(["sign"])),
            ("crv", "X25519".into()),
            ("kty", "oct".into()),
            ("alg", "HS256".into()),
        ] {
            assert!(
                with(name, value).is_err_and(|what| what.starts_with("no key in it can be used")),
                "{name}"
            );
        }
        assert!(key_set("[]").is_err() && key_set("{").is_err() && key_set("{\"keys\": 1}").is_err());
    }
}
