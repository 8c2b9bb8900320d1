// An OpenID Connect provider over TLS on a free port of loopback, which insists on PKCE. Argument:
// {"cert": PATH, "key": PATH, "client_id": …, "client_secret": …, "redirect": URL,
//  "accounts": {NAME: {claim: value, …}}, "in_token": whether claims are in the ID token,
//  "slow": seconds that its clock is behind}.
// What an account has under "id_token" or "userinfo" is said there only. ID tokens are good for 20 s. Prints its
// port. Its own pages take any password.
'use strict'

const fs = require('node:fs')
const https = require('node:https')

const main = async () => {
  const { Provider } = await import('oidc-provider')
  const wanted = JSON.parse(process.argv[2])
  const now = Date.now
  Date.now = () => now() - 1000 * (wanted.slow ?? 0)
  let callback
  const options = { cert: fs.readFileSync(wanted.cert), key: fs.readFileSync(wanted.key) }
  const server = https.createServer(options, (request, response) => callback(request, response))
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  const provider = new Provider(`https://localhost:${port}`, {
    clients: [{
      client_id: wanted.client_id,
      client_secret: wanted.client_secret,
      redirect_uris: [wanted.redirect],
    }],
    pkce: { required: () => true },
    conformIdTokenClaims: !wanted.in_token,
    claims: { openid: ['sub', 'azp', 'nbf'], email: ['email', 'email_verified'], profile: ['groups'] },
    ttl: { IdToken: 20 },
    cookies: { keys: ['only for tests'] },
    findAccount: (_, id) => ({
      accountId: id,
      claims: async use => ({ sub: id, ...wanted.accounts[id], ...wanted.accounts[id][use] }),
    }),
  })
  callback = provider.callback()
  process.stdout.write(`${port}\n`)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
