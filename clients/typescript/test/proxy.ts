// A TCP proxy that loses answers and cuts connections.

import { type AddressInfo, type Server, type Socket, connect, createServer } from "node:net";

/** Passes bytes both ways; while `loses`, the server's are thrown away. */
export class LossyProxy {
  loses = false;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(target: string) {
    const [host, port] = target.split(":");
    this.#server = createServer((client) => {
      const server = connect({ host: host ?? "", port: Number(port) });
      client.on("data", (data) => server.write(data));
      server.on("data", (data) => this.loses || client.write(data));
      for (const [end, other] of [
        [client, server],
        [server, client],
      ] as const) {
        this.#sockets.add(end);
        end.on("error", () => {});
        end.on("close", () => {
          this.#sockets.delete(end);
          other.destroy();
        });
      }
    });
  }

  static async before(target: string): Promise<LossyProxy> {
    const proxy = new LossyProxy(target);
    await new Promise<void>((done) => proxy.#server.listen(0, "127.0.0.1", done));
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  cut(): void {
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }

  close(): void {
    this.#server.close();
    this.cut();
  }
}
