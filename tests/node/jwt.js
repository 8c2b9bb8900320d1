// Makes tokens with jose, the library that existing agents' tools use. Argument:
// {"tokens": [{"key": PEM or OpenSSH private key, "alg": …, "claims": {…}, "header": {…}}, …]};
// prints a JSON list of tokens. `alg` may be `none`; with `HS256` the key is the secret itself.
'use strict'

const { createPrivateKey, createSecretKey } = require('node:crypto')
const { utils } = require('ssh2')

const base64url = value => Buffer.from(JSON.stringify(value)).toString('base64url')

const privateKey = text => {
  if (!text.includes('OPENSSH')) return createPrivateKey(text)
  return createPrivateKey(utils.parseKey(text).getPrivatePEM())
}

const token = async (jose, { key, alg, claims, header }) => {
  if (alg === 'none') return `${base64url({ alg, ...header })}.${base64url(claims)}.`
  const signer = new jose.SignJWT(claims).setProtectedHeader({ alg, ...header })
  return signer.sign(alg.startsWith('HS') ? createSecretKey(Buffer.from(key)) : privateKey(key))
}

const main = async () => {
  const jose = await import('jose')
  const { tokens } = JSON.parse(process.argv[2])
  const all = []
  for (const wanted of tokens) all.push(await token(jose, wanted))
  console.log(JSON.stringify(all))
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
