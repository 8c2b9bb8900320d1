// An agent written with ssh2, as existing agents are. Takes one JSON argument:
// { host, port, ca, servername, username, key, forwards: { REQUEST_ID: PORT }, cancel?: REQUEST_ID, exec?: [COMMAND…] }
// (without `ca`: plain SSH). Prints one JSON object a line for each thing that happens.
'use strict';
const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { Client } = require('ssh2');

const options = JSON.parse(process.argv[2]);
const say = (event) => process.stdout.write(JSON.stringify(event) + '\n');

const transport = () => new Promise((resolve, reject) => {
  if (!options.ca) return resolve(net.connect(options.port, options.host));
  const socket = tls.connect({
    host: options.host,
    port: options.port,
    servername: options.servername,
    ca: fs.readFileSync(options.ca),
    ALPNProtocols: ['ssh'],
  }, () => { say({ event: 'tls', alpn: socket.alpnProtocol }); resolve(socket); });
  socket.on('error', reject);
});

const forward = (client, id) => new Promise((resolve) => {
  client.openssh_forwardInStreamLocal(id, (error) => {
    say(error ? { event: 'refused', id, error: error.message } : { event: 'forwarded', id });
    resolve();
  });
});

const exec = (client, command) => new Promise((resolve) => {
  client.exec(command, (error, channel) => {
    if (error) { say({ event: 'exec-refused', command, error: error.message }); return resolve(); }
    let stdout = '';
    let code = null;
    let said = false;
    const finish = () => {
      if (said) return;
      said = true;
      say({ event: 'exec', command, code, stdout });
      resolve();
    };
    // The stream gives its data later than the exit status, and with forwards it stays open.
    const check = () => { if (code !== null && stdout.endsWith('\r\n')) finish(); };
    channel.on('data', (data) => { stdout += data; check(); });
    channel.on('exit', (status) => { code = status; check(); });
    channel.on('close', finish);
  });
});

const main = async () => {
  const client = new Client();
  client.on('error', (error) => { say({ event: 'error', error: error.message }); process.exit(3); });
  client.on('handshake', () => say({ event: 'keys' }));
  client.on('close', () => { say({ event: 'close' }); process.exit(0); });
  client.on('unix connection', (info, accept, reject) => {
    say({ event: 'channel', path: info.socketPath });
    const port = options.forwards[info.socketPath];
    if (!port) return reject();
    const upstream = net.connect(port, '127.0.0.1');
    upstream.on('error', () => reject());
    upstream.on('connect', () => {
      const channel = accept();
      channel.on('error', () => upstream.destroy());
      upstream.removeAllListeners('error');
      upstream.on('error', () => channel.destroy());
      upstream.pipe(channel).pipe(upstream);
    });
  });
  client.on('ready', async () => {
    for (const id of Object.keys(options.forwards)) await forward(client, id);
    for (const id of options.again || []) await forward(client, id);
    for (const command of options.exec || []) await exec(client, command);
    if (options.cancel) {
      client.openssh_unforwardInStreamLocal(options.cancel, (error) => say({ event: 'cancelled', error: error && error.message }));
    }
    say({ event: 'ready' });
  });
  client.connect({
    sock: await transport(),
    username: options.username,
    privateKey: fs.readFileSync(options.key),
    readyTimeout: 15000,
  });
};
main().catch((error) => { say({ event: 'error', error: error.message }); process.exit(3); });
